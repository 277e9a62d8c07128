"""How a run tells Python users how it goes on: as a command does, on stderr."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from kd_jax.runtime import console
from kd_jax.runtime.console import logger


@contextlib.contextmanager
def shown(wanted: bool) -> Iterator[None]:
    """Context in which a run is told on stderr: one live line, or log lines.

    Args:
      wanted: False is silent. Where the application has set up the logger `kd_jax` itself, or
        propagates it to handlers of its own, that is all that happens.
    """
    if not wanted or logger.hasHandlers():
        yield
        return
    handler = console.handler(logging.Formatter("%(message)s"))
    level, propagates = logger.level, logger.propagate
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # or what a library adds to the root says everything again
    try:
        yield
    finally:
        console.end_progress()
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
        # absl sets up the root logger at its first line, where nobody else has. Left there, it
        # would pass for the application's, and the next run would not be told.
        for added in [each for each in root.handlers if each not in before]:
            if type(added) is logging.StreamHandler:
                root.removeHandler(added)
