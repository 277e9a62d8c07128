"""The checkpoints of a run of any number of processes: the first reads and writes them for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
        return _from_first(lambda: self._checkpoints.restore(template, step), template)

    def restore_newest(self, template: Any) -> Any | None:
        """Return the newest good state or None, see `Checkpoints.restore_newest`."""
        return _from_first(lambda: self._checkpoints.restore_newest(template), template)


def _from_first(restore: Callable[[], Any | None], template: Any) -> Any | None:
    """Return in all processes the state that the first one restores, or None.

    Args:
      restore: called in the first process only.
      template: a tree of arrays of the same structure, shapes and dtypes.

    Raises:
      DamagedError: `restore` raised it; in all processes.
    """
    states: list[Any] = []

    def outcome() -> dict[str, Any]:
        try:
            state = restore()
        except DamagedError as error:
            return {"damage": str(error)}
        states.append(state)
        return {"is_empty": state is None}

    answer = processes.on_first(outcome)
    if "damage" in answer:
        raise DamagedError(answer["damage"])
    if answer["is_empty"]:
        return None
    return processes.tree_from_first(states[0] if states else _zeros(template))


def _zeros(template: Any) -> Any:
    """Return a tree of zeros in host memory."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
