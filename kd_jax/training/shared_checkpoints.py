"""The checkpoints of a run of any number of processes: the first reads and writes them for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_jax.runtime import processes
from kd_jax.training.checkpoints import Checkpoints, DamagedError


class SharedCheckpoints:
    """`Checkpoints` of the first process; every method is to be called in all, and answers alike.

    What cannot be read or written raises the same error in every process.
    """

    def __init__(self, directory: Path, keep: int):
        """Open them, see `Checkpoints`."""
        self._checkpoints: Checkpoints

        def open_checkpoints() -> None:
            self._checkpoints = Checkpoints(directory, keep)

        processes.on_first(open_checkpoints)

    def latest_step(self) -> int | None:
        """Return the newest checkpoint's step, or None."""
        return processes.on_first(lambda: self._checkpoints.latest_step())

    def best_step(self) -> int | None:
        """Return the step of the best checkpoint on validation, or None."""
        return processes.on_first(lambda: self._checkpoints.best_step())

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint, see `Checkpoints.save`."""
        processes.on_first(lambda: self._checkpoints.save(step, state, metrics))

    def wait(self) -> None:
        """Wait for what is being written, see `Checkpoints.wait`."""
        processes.on_first(lambda: self._checkpoints.wait())

    def close(self) -> None:
        """Wait for what is being written, and let go of the directory."""
        processes.on_first(lambda: self._checkpoints.close())

    def restore(self, template: Any, step: int) -> Any:
        """Return the state at `step`, in host memory, see `Checkpoints.restore`."""
        states: list[Any] = []

        def read() -> str | None:
            try:
                states.append(self._checkpoints.restore(template, step))
            except DamagedError as error:
                return str(error)
            return None

        damage = processes.on_first(read)
        if damage is not None:
            raise DamagedError(damage)
        return processes.tree_from_first(states[0] if states else _on_host(template))

    def restore_newest(self, template: Any) -> Any | None:
        """Return the newest good state or None, see `Checkpoints.restore_newest`."""
        states: list[Any] = []

        def read() -> bool:
            state = self._checkpoints.restore_newest(template)
            states.extend([] if state is None else [state])
            return state is not None

        if not processes.on_first(read):
            return None
        return processes.tree_from_first(states[0] if states else _on_host(template))


def _on_host(template: Any) -> Any:
    import jax
    import numpy as np

    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
