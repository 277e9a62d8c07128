"""Sinks of metrics work in the background, in order; one that fails is named once, and no more."""

import threading

import numpy as np
import pytest

from kd_jax.runtime import signals
from kd_jax.runtime.console import logger
from kd_jax.training import listeners as listeners_lib
from kd_jax.training.callbacks import Callback, MetricSink, StopTraining
from kd_jax.training.listeners import Listeners


class Sink(MetricSink):
    title, install = "what the test keeps", "pip install test"

    def __init__(self, error=None):
        self.heard, self.error, self.threads = [], error, set()

    def _hear(self, *event):
        self.threads.add(threading.current_thread())
        if self.error:
            raise self.error
        self.heard.append(event)

    def on_step(self, step, metrics):
        self._hear("step", step)

    def on_end(self, step, measures):
        self._hear("end", step)

    def on_close(self):
        self.threads.add(threading.current_thread())
        self.heard.append(("close",))


class Looking(Sink):
    def on_images(self, step, images):
        self._hear("images", sorted(images))


class Watching(Callback):
    def __init__(self):
        self.images = None

    def on_images(self, step, images):
        self.images = images
        raise StopTraining("seen enough")


def test_a_sink_hears_all_in_order_in_a_thread_of_its_own():
    sink = Sink()
    with Listeners([sink], signals.StopRequest()) as listeners:
        for step in range(50):
            listeners.on_step(step, {})
        listeners.on_end(50, {})
    assert sink.heard == [*(("step", step) for step in range(50)), ("end", 50), ("close",)]
    assert len(sink.threads) == 1
    assert threading.current_thread() not in sink.threads


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ImportError("No module named 'x'"), "No module named 'x'; install what is missing with "),
        (RuntimeError("a full disk\nand more"), "could not be written: a full disk and more"),
    ],
)
def test_a_sink_that_fails_is_named_once_and_harms_nobody(error, says, caplog):
    logger.propagate = True
    failing, good = Sink(error), Sink()
    with Listeners([failing, good], signals.StopRequest()) as listeners:
        for step in range(20):
            listeners.on_step(step, {})
    assert len(good.heard) == 21
    assert failing.heard == [("close",)]  # what it holds is let go, and later events do not wait
    assert caplog.text.count("what the test keeps could not be written") == 1
    assert says in caplog.text


def test_a_sink_that_hangs_does_not_keep_the_run(monkeypatch, caplog):
    logger.propagate = True
    monkeypatch.setattr(listeners_lib, "_PATIENCE_SECONDS", 0.1)
    freed = threading.Event()

    class Hanging(Sink):
        def on_step(self, step, metrics):
            freed.wait(30)

    with Listeners([Hanging()], signals.StopRequest()) as listeners:
        listeners.on_step(1, {})
    freed.set()
    assert "is not ready" in caplog.text


def test_images_are_made_for_those_that_look_and_once():
    made, looking, watching = [], Looking(), Watching()
    stop = signals.StopRequest()

    def make():
        made.append(1)
        return {"views": np.zeros((2, 4, 4, 3), np.uint8)}

    with Listeners([Sink(), Callback()], stop) as listeners:
        listeners.on_images(0, make)
    assert made == []
    with Listeners([looking, watching], stop) as listeners:
        listeners.on_images(0, make)
    assert made == [1]
    assert looking.heard == [("images", ["views"]), ("close",)]
    assert watching.images["views"].shape == (2, 4, 4, 3)
    assert stop.requested == "seen enough"
