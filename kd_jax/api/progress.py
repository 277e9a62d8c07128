"""How a run tells Python users how it goes on: one line that is written anew, or log lines."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping

from kd_jax.runtime.console import logger
from kd_jax.training.callbacks import Callback


class LiveLine(Callback):
    """One line on stderr that says how far training is."""

    def __init__(self) -> None:
        """Begin with an empty line."""
        self.width = 0

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the line anew."""
        words = [f"step {step}", f"epoch {metrics['epoch']:.2f}", f"loss {metrics['loss']:.4f}"]
        if "images_per_second" in metrics:
            words.append(f"{metrics['images_per_second']:.0f} images/s")
        self.write("  ".join(words))

    def write(self, text: str) -> None:
        """Write a text over the one before."""
        sys.stderr.write("\r" + text.ljust(self.width))
        sys.stderr.flush()
        self.width = len(text)

    def clear(self) -> None:
        """Leave the line empty."""
        if self.width:
            self.write("")
            sys.stderr.write("\r")
            self.width = 0


class _Handler(logging.StreamHandler):
    """Write log lines above the live one; those that the live line has are left out."""

    def __init__(self, line: LiveLine):
        super().__init__(sys.stderr)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        if record.funcName == "flush":  # the line of each logged step
            return
        self._line.clear()
        super().emit(record)


@contextlib.contextmanager
def shown(wanted: bool) -> Iterator[list[Callback]]:
    """Context in which a run is told on stderr; gives the callbacks that do it.

    Args:
      wanted: False is silent. Where the application has set up the logger `kd_jax` itself, or
        propagates it to handlers of its own, that is all that happens.
    """
    if not wanted or logger.hasHandlers():
        yield []
        return
    line = LiveLine()
    handler, level = _Handler(line), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield [line]
    finally:
        line.clear()
        logger.removeHandler(handler)
        logger.setLevel(level)
