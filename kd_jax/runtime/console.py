"""What a person sees on the terminal: our own lines, and only the errors of the libraries."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

logger = logging.getLogger("kd_jax")


def set_up() -> None:
    """Send our lines to stderr with the time of day; keep libraries to their errors."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)
    absl.logging.set_stderrthreshold("error")
    # Orbax logs a traceback from each of its threads, and then raises the error too.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    sys.unraisablehook = _unraisable
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


def only_warnings() -> None:
    """Keep our own lines to warnings: one process of several tells how the run goes on."""
    logger.setLevel(logging.WARNING)


def _unraisable(unraisable: Any) -> None:
    """Report an error that nobody can catch, but for one that says nothing.

    After a failed write TensorStore still calls back into the event loop that Orbax has closed.
    """
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
