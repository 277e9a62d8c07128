"""What a run tells: `metrics.jsonl`, TensorBoard, and a line of progress.

`metrics.jsonl` is written at once, one JSON object a line: what `report` reads. TensorBoard's
event files are written by clu in a thread of their own, where TensorFlow is imported too, so no
step waits for either.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
import time
from pathlib import Path

from kd_jax import files, tf_quietly
from kd_jax.console import logger

METRICS_FILE = "metrics.jsonl"


class Logbook:
    """The writer of one run's metrics."""

    def __init__(self, workdir: Path, start_step: int):
        """Open the logs, and drop what was logged beyond the step that the run resumes from.

        Args:
          workdir: of the run.
          start_step: number of updates already made.
        """
        self._path = workdir / METRICS_FILE
        kept = [
            record for record in files.read_json_lines(self._path) if record["step"] <= start_step
        ]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        files.write_whole(self._path, text.encode())
        self._file = self._path.open("a", encoding="utf-8")
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "tensorboard")
        self._tensorboard = self._thread.submit(
            lambda: tf_quietly.import_metric_writers().SummaryWriter(str(workdir / "tensorboard"))
        )

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Record scalars.

        Args:
          kind: `train` or `val`.
          step: number of updates made.
          values: names without the kind to numbers.
        """
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        scalars = {f"{kind}/{name}": value for name, value in values.items()}
        self._thread.submit(lambda: self._tensorboard.result().write_scalars(step, scalars))

    def close(self) -> None:
        """Write out everything."""
        self._file.close()
        self._thread.submit(lambda: self._tensorboard.result().close())
        self._thread.shutdown(wait=True)
        if error := self._tensorboard.exception():
            logger.warning("TensorBoard's files could not be written: %s", error)


class Stopwatch:
    """Images a second of training alone: compilation, evaluation and waiting do not count."""

    def __init__(self, batch_size: int, total_steps: int):
        self._batch_size, self._total_steps = batch_size, total_steps
        self._seconds, self._steps = 0.0, 0
        self._since: float | None = None

    def start(self) -> None:
        """Begin or go on to measure."""
        self._since = time.perf_counter()

    def lap(self, steps: int) -> float:
        """Add the steps made since the last call; return their images a second."""
        now = time.perf_counter()
        if self._since is None or steps == 0:
            return math.nan
        seconds = now - self._since
        self._since = now
        self._seconds += seconds
        self._steps += steps
        return steps * self._batch_size / seconds

    @property
    def images_per_second(self) -> float | None:
        """Of all that was measured; None if nothing was."""
        return self._steps * self._batch_size / self._seconds if self._seconds else None

    def time_left(self, step: int) -> str:
        """Return the time that the steps after `step` will take, such as `1h02m`."""
        if not self._steps:
            return "?"
        return duration(self._seconds / self._steps * (self._total_steps - step))


def duration(seconds: float) -> str:
    """Return seconds as people say them: `42s`, `3m05s`, `1h02m`, `2d03h`."""
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{smaller}"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
