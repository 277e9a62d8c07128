"""Who is told of the events of a run: callbacks at once, sinks of metrics in the background."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import in_short
from kd_jax.runtime.signals import StopRequest
from kd_jax.training.callbacks import Callback, MetricSink, RunStart, StopTraining

_PATIENCE_SECONDS = 60.0  # for what a sink has still to write when a run ends


class Listeners:
    """The callbacks and sinks of a run; a context manager that closes the sinks."""

    def __init__(self, callbacks: Sequence[Callback], stop: StopRequest):
        """Begin.

        Args:
          callbacks: called in this order.
          stop: how the loop is asked to stop.
        """
        sinks = [each for each in callbacks if isinstance(each, MetricSink)]
        self._callbacks = [each for each in callbacks if each not in sinks]
        self._sinks, self._stop = [_Background(sink) for sink in sinks], stop

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self._sinks:
            sink.close()

    def on_start(self, run: RunStart) -> None:
        """Tell all of them, see `Callback.on_start`."""
        self._tell("on_start", run)

    def on_images(self, step: int, make: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Tell those that listen, see `Callback.on_images`; only for them the images are made."""
        make = functools.cache(make)
        for callback in self._callbacks:
            if type(callback).on_images is not Callback.on_images:
                self._call(callback, "on_images", step, make())
        for sink in self._sinks:
            if type(sink.sink).on_images is not Callback.on_images:
                sink.call(lambda sink=sink: sink.sink.on_images(step, make()))  # type: ignore[misc]

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell all of them, see `Callback.on_step`."""
        self._tell("on_step", step, metrics)

    def on_evaluate(self, step: int, measures: Mapping[str, float]) -> None:
        """Tell all of them, see `Callback.on_evaluate`."""
        self._tell("on_evaluate", step, measures)

    def on_checkpoint(self, step: int, directory: Path) -> None:
        """Tell all of them, see `Callback.on_checkpoint`."""
        self._tell("on_checkpoint", step, directory)

    def on_end(self, step: int, measures: Mapping[str, float]) -> None:
        """Tell all of them, see `Callback.on_end`."""
        self._tell("on_end", step, measures)

    def _tell(self, event: str, *arguments: object) -> None:
        for sink in self._sinks:
            sink.call(functools.partial(getattr(sink.sink, event), *arguments))
        for callback in self._callbacks:
            self._call(callback, event, *arguments)

    def _call(self, callback: Callback, event: str, *arguments: object) -> None:
        try:
            getattr(callback, event)(*arguments)
        except StopTraining as stop:
            self._stop.requested = str(stop) or f"{type(callback).__name__}.{event}"


class _Background:
    """A sink in a thread of its own, until it fails.

    The thread does not keep the process alive: a tracker that hangs costs its last records, and a
    minute.
    """

    def __init__(self, sink: MetricSink):
        self.sink = sink
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._has_failed = False

    def call(self, work: Callable[[], object]) -> None:
        """Do something in the thread, after what it was given before."""
        if self._has_failed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._calls.put(work)

    def close(self) -> None:
        """Let the sink write what it has, and end."""
        if self._thread is None:
            return
        self._calls.put(self.sink.on_close)
        self._calls.put(None)
        self._thread.join(_PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._say("it is not ready after a minute")

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            try:
                work()
            except Exception as error:  # whatever a tracker's library raises
                advice = ""
                if isinstance(error, ImportError) and self.sink.install:
                    advice = f"; install what is missing with {self.sink.install}"
                self._say(f"{in_short(error)}{advice}")
                self._has_failed = True
                with contextlib.suppress(Exception):  # that it cannot be written was said
                    self.sink.on_close()
                return

    def _say(self, reason: str) -> None:
        logger.warning("%s could not be written: %s", self.sink.title, reason)
