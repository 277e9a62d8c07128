"""What a person sees on the terminal: our own lines, and only the errors of the libraries."""

from __future__ import annotations

import logging
import warnings

logger = logging.getLogger("kd_jax")


def set_up() -> None:
    """Send our lines to stderr with the time of day; keep libraries to their errors."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)
    absl.logging.set_stderrthreshold("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
