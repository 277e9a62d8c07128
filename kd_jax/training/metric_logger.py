"""What a run tells: `metrics.jsonl`, and a line of progress.

`metrics.jsonl` is written at once, one JSON object a line: what `report` reads, and what trackers
of metrics (`sinks`) are told as well.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from kd_jax.runtime import atomic_files, console
from kd_jax.runtime.errors import DivergedError, UserError
from kd_jax.training.time_left import TimeLeft

METRICS_FILE = "metrics.jsonl"


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raise `DivergedError` if a metric is not a finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"{name} is {value} at step {step}")


class MetricLogger:
    """The writer of one run's `metrics.jsonl`.

    Attributes:
      records: what was logged before this start.
    """

    def __init__(self, workdir: Path | None, start_step: int):
        """Open the log, and drop what was logged beyond the step that the run resumes from.

        Args:
          workdir: of the run; None in a process that leaves writing to another.
          start_step: number of updates already made.
        """
        self.records: list[dict[str, Any]] = []
        self._file: TextIO | None = None
        if workdir is None:
            return
        self._path = workdir / METRICS_FILE
        self.records = [
            record
            for record in atomic_files.read_json_lines(self._path)
            if record["step"] <= start_step
        ]
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        atomic_files.write_whole(self._path, text.encode())
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Record scalars.

        Args:
          kind: `train` or `val`.
          step: number of updates made.
          values: names without the kind to numbers.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written ({error.strerror}): make room or mend the place, "
                "and the same command resumes from its newest checkpoint"
            ) from error

    def close(self) -> None:
        """Write out everything."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # what could not be written was said when it was
            self._file.close()


class Throughput:
    """Metrics of the training steps, one step late, and the rate of training alone.

    A metric is fetched only when the step after it has been dispatched, so the devices never wait
    for the host. Compilation, evaluation and saving are not part of the rate.
    """

    def __init__(
        self,
        metric_logger: MetricLogger,
        batch_size: int,
        total_steps: int,
        examples: int,
        time_left: TimeLeft,
        learning_rate: Callable[[int], float],
        name: str = "",
        on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    ):
        self._on_step, self._learning_rate = on_step, learning_rate
        self._metric_logger, self._batch_size, self._name = metric_logger, batch_size, name
        self._total_steps, self._examples = total_steps, examples
        self._time_left = time_left
        self._noted_metrics: tuple[int, Mapping[str, Any]] | None = None
        self._lap_start: float | None = None
        self._lap_step = 0
        self._seconds, self._steps = 0.0, 0
        self._seconds_before, self._steps_before = 0.0, 0  # of this program

    def begin_program(self) -> None:
        """Say that the steps from here are of another program, whose rate is not known yet."""
        self._seconds_before, self._steps_before = self._seconds, self._steps

    def start(self, step: int) -> None:
        """Begin to measure the rate: `step` updates are made, and nothing is in flight."""
        self._lap_start, self._lap_step = time.perf_counter(), step

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep a step's metrics, scalars that may still be computed, for the next `flush`."""
        self._noted_metrics = (step, metrics)

    def flush(self) -> None:
        """Wait for the metrics that were noted last, and write and print them.

        Raises:
          DivergedError: one of them is not finite; it is not written.
          UserError: they cannot be written.
        """
        if self._noted_metrics is None:
            return
        step, metrics = self._noted_metrics
        self._noted_metrics = None
        values = {name: float(value) for name, value in metrics.items()}
        check_finite(step, values)
        rate = self._lap(step)
        epoch = step * self._batch_size / self._examples
        rate_field = {} if rate is None else {"images_per_second": round(rate, 1)}
        learning_rate = self._learning_rate(step)
        record = {
            "epoch": round(epoch, 6), **values, "learning_rate": learning_rate, **rate_field
        }  # fmt: skip
        self._metric_logger.write("train", step, record)
        left = self._time_left.words(step, self._seconds_per_step)
        console.progress(
            step,
            self._total_steps,
            self._name,
            f"epoch {epoch:.2f}  loss {values['loss']:.4f}  "
            f"{'?' if rate is None else f'{rate:.0f}'} images/s  {left} left",
        )
        self._on_step(step, record)

    def stop(self, step: int) -> None:
        """Write what is noted, and end measuring: all steps up to `step` are finished."""
        self.flush()
        self._lap(step)
        self._lap_start = None

    @property
    def images_per_second(self) -> float | None:
        """Of all that was measured; None if nothing was."""
        return self._steps * self._batch_size / self._seconds if self._seconds else None

    @property
    def _seconds_per_step(self) -> float | None:
        """Of the program in use; None if nothing of it was measured."""
        steps = self._steps - self._steps_before
        return (self._seconds - self._seconds_before) / steps if steps else None

    def _lap(self, step: int) -> float | None:
        """Add the steps since the last lap; return their images a second."""
        steps, now = step - self._lap_step, time.perf_counter()
        if self._lap_start is None or steps <= 0:
            return None
        seconds, self._lap_start, self._lap_step = now - self._lap_start, now, step
        self._seconds += seconds
        self._steps += steps
        return steps * self._batch_size / seconds
