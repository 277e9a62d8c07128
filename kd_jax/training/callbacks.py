"""What a caller from Python hears of a run, and how one stops it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_jax.runtime.signals import StopRequest


class StopTraining(Exception):  # noqa: N818 -- it is no error
    """Raised by a callback to stop: the run saves a checkpoint and ends; it can be resumed."""


class Callback:
    """Base class of what listens to a run; each method does nothing.

    The methods are called in the process that trains, between two steps: training waits for them.
    Any of them may raise `StopTraining`. Whatever else they raise ends the run; its checkpoints are
    kept.
    """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hear the training metrics, every `log_every_steps`.

        Args:
          step: number of updates made.
          metrics: `loss`, `grad_norm`, `epoch`, `agreement` and `images_per_second` where there
            are such.
        """

    def on_evaluate(self, step: int, measures: Mapping[str, float]) -> None:
        """Hear what was measured on validation, see `metrics.fidelity.summary`."""

    def on_checkpoint(self, step: int, directory: Path) -> None:
        """Hear that a checkpoint is being written, in a directory of this name."""


class Listeners:
    """The callbacks of a run."""

    def __init__(self, callbacks: Sequence[Callback], stop: StopRequest):
        """Begin.

        Args:
          callbacks: called in this order.
          stop: how the loop is asked to stop.
        """
        self._callbacks, self._stop = tuple(callbacks), stop

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell all of them, see `Callback.on_step`."""
        self._tell("on_step", step, metrics)

    def on_evaluate(self, step: int, measures: Mapping[str, float]) -> None:
        """Tell all of them, see `Callback.on_evaluate`."""
        self._tell("on_evaluate", step, measures)

    def on_checkpoint(self, step: int, directory: Path) -> None:
        """Tell all of them, see `Callback.on_checkpoint`."""
        self._tell("on_checkpoint", step, directory)

    def _tell(self, event: str, *arguments: object) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, event)(*arguments)
            except StopTraining as stop:
                self._stop.requested = str(stop) or f"{type(callback).__name__}.{event}"
