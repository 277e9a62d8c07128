"""What a caller from Python, or a tracker of metrics, hears of a run, and how one stops it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class StopTraining(Exception):  # noqa: N818 -- it is no error
    """Raised by a callback to stop: the run saves a checkpoint and ends; it can be resumed."""


@dataclasses.dataclass(frozen=True)
class RunStart:
    """A start of a run, as its callbacks hear of it.

    Attributes:
      workdir: of the run; its name is the run's.
      config: dotted paths to values.
      step: number of updates that earlier starts have made.
      total_steps: of the whole run.
    """

    workdir: Path
    config: Mapping[str, Any]
    step: int
    total_steps: int


class Callback:
    """Base class of what listens to a run; each method does nothing.

    The methods are called in the process that trains, between two steps: training waits for them.
    Any of them may raise `StopTraining`. Whatever else they raise ends the run; its checkpoints are
    kept.
    """

    def on_start(self, run: RunStart) -> None:
        """Hear that training begins, or goes on."""

    def on_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Hear once, after the first step of a run, what the networks look at.

        Args:
          step: 0, of which the images are.
          images: the first of the batch, uint8 `[n, H, W, C]`: `images` as the data set has them,
            `views` augmented, `mixed_views` where there is mixup, and `teacher_views` where the
            teacher has its own.
        """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hear the training metrics, every `log_every_steps`.

        Args:
          step: number of updates made.
          metrics: `loss`, `grad_norm`, `learning_rate`, `epoch`, `agreement` and
            `images_per_second` where there are such.
        """

    def on_evaluate(self, step: int, measures: Mapping[str, float]) -> None:
        """Hear what was measured on validation, see `metrics.fidelity.summary`."""

    def on_checkpoint(self, step: int, directory: Path) -> None:
        """Hear that a checkpoint is being written, in a directory of this name."""

    def on_end(self, step: int, measures: Mapping[str, float]) -> None:
        """Hear what the finished student reaches on the test split: `top1`, `nll` and so on."""


class MetricSink(Callback):
    """Base class of what passes metrics on to a tracker of experiments.

    As any callback, but in a thread of its own, in the order of the events, so no step waits for
    it. What it raises is said once, and ends the sink and not the run: `metrics.jsonl` and
    `result.json` have everything.

    Attributes:
      title: what it writes, for the sentence about a failure.
      install: the command that installs what it imports; empty for none.
    """

    title = "what a tracker writes"
    install = ""

    def on_close(self) -> None:
        """Hear that this start is over, however it ended; nothing comes after it."""
