"""The trackers that `config.trackers` names: TensorBoard's files, and trackio's.

Each imports its library when there is something to write, and not before: Python runs one thread at
a time, and until the first step is made it is busy tracing it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd_jax.runtime import quiet_tensorflow
from kd_jax.runtime.errors import UserError
from kd_jax.training.callbacks import MetricSink, RunStart

_LEFT_OUT = ("epoch",)  # another measure of the step, which is the axis


class _Scalars(MetricSink):
    """A sink that takes all numbers by name: `train/loss`, `val/top1`, `test/top1`."""

    def __init__(self) -> None:
        self._run: RunStart | None = None

    def on_start(self, run: RunStart) -> None:
        self._run = run

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("train", step, metrics)

    def on_evaluate(self, step: int, measures: Mapping[str, float]) -> None:
        self._write("val", step, measures)

    def on_end(self, step: int, measures: Mapping[str, float]) -> None:
        self._write("test", step, measures)

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self.write(step, {f"{kind}/{k}": v for k, v in values.items() if k not in _LEFT_OUT})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step."""
        raise NotImplementedError


class TensorBoard(_Scalars):
    """TensorBoard's event files, in the workdir itself: so the run has its name there."""

    title = "TensorBoard's files"
    install = quiet_tensorflow.INSTALL

    @functools.cached_property
    def _writer(self) -> Any:
        assert self._run is not None
        return quiet_tensorflow.import_metric_writers().SummaryWriter(str(self._run.workdir))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.write_scalars(step, dict(values))

    def on_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._writer.write_images(step, dict(images))

    def on_close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class Trackio(_Scalars):
    """A run of trackio: its project is the folder that the workdir is in.

    trackio keeps its data on this machine, in `TRACKIO_DIR`, unless `TRACKIO_SPACE_ID` or
    `TRACKIO_SERVER_URL` says otherwise.
    """

    title = "what trackio keeps"
    install = "pip install 'kd_jax[trackio]'"

    @functools.cached_property
    def _writer(self) -> Any:
        import trackio

        assert self._run is not None
        with contextlib.redirect_stdout(sys.stderr):  # it greets; stdout is for results
            return trackio.init(
                project=self._run.workdir.parent.name or "kd_jax",
                name=self._run.workdir.name,
                config=dict(self._run.config),
                resume="allow" if self._run.step else "never",
                embed=False,
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.log(dict(values), step=step)

    def on_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import trackio

        tables = {f"images/{name}": trackio.Image(as_one(each)) for name, each in images.items()}
        self._writer.log(tables, step=step)

    def on_close(self) -> None:
        if "_writer" in self.__dict__:
            with contextlib.redirect_stdout(sys.stderr):
                self._writer.finish()


SINKS: dict[str, Callable[[], MetricSink]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def check(config: ConfigDict) -> None:
    """Raise `UserError` if a tracker was asked for by name that is not installed.

    TensorBoard is there unless it is left out, so a run without it is only told.
    """
    if "trackio" in config.trackers and importlib.util.find_spec("trackio") is None:
        raise UserError(
            f"config.trackers is {tuple(config.trackers)}, and trackio is not installed: "
            f"{Trackio.install}, or leave it out"
        )


def of(config: ConfigDict) -> list[MetricSink]:
    """Return the sinks that a config names."""
    return [SINKS[name]() for name in config.trackers]


def as_one(images: np.ndarray) -> np.ndarray:
    """Return images `[n, H, W, C]` side by side in one, in about as many rows as columns."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    filled = np.zeros((rows * columns, height, width, channels), images.dtype)
    filled[:count] = images
    table = filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return table.reshape(rows * height, columns * width, channels)
