"""TensorFlow, only where a library needs it: late, silent, and away from the accelerators.

Importing it takes seconds, so nothing imports it at start-up; and it would take all of a GPU's
memory, so the GPUs are hidden from it before it looks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import ModuleType

from kd_jax.runtime.errors import UserError

INSTALL = "pip install 'kd_jax[tfds]'"

# What its C++ says of itself while it is imported, whatever `TF_CPP_MIN_LOG_LEVEL` is: lines of the
# level INFO (that oneDNN is on), and that nobody has called InitializeLog yet.
_NOTES = ("^I[0-9]{4} ", "^WARNING: All log messages before absl::InitializeLog")
_LONGEST_WAIT = 5.0  # seconds, for what is still to be passed on
_import_lock = threading.Lock()


def _hide_accelerators() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _import_lock:  # sinks of several runs import it at the same time
        is_there = "tensorflow" in sys.modules
        # A live line has no end: beside one, which the main thread writes, nothing may stand
        # between it and the terminal.
        is_free = threading.current_thread() is threading.main_thread() or not _is_terminal()
        with without_notes() if is_free and not is_there else contextlib.nullcontext():
            import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def import_tensorflow() -> ModuleType:
    """Return the module `tensorflow`; `ImportError` where it is missing."""
    _hide_accelerators()
    import tensorflow as tf

    return tf


def import_tfds() -> ModuleType:
    """Return the module `tensorflow_datasets`.

    Raises:
      UserError: it, or TensorFlow, is not installed.
    """
    try:
        _hide_accelerators()
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise missing(error) from error

    tfds.disable_progress_bar()
    return tfds


def missing(error: ImportError) -> UserError:
    """Return what is said where a data set cannot be read without what is not installed."""
    return UserError(
        f"a data set of tfds has to be read, and what reads it is not installed ({error}): "
        f"install it with {INSTALL}; images in a folder, and sets that this machine has decoded "
        "before, need none"
    )


def import_metric_writers() -> ModuleType:
    """Return the module `clu.metric_writers`; `ImportError` where TensorFlow is missing."""
    _hide_accelerators()
    from clu import metric_writers

    return metric_writers


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Keep `_NOTES` from stderr; every other line passes, also the last words before an abort.

    So a process of its own reads along: a thread of this one would not live to pass those on.
    """
    patterns = [option for note in _NOTES for option in ("-e", note)]
    try:
        grep = subprocess.Popen(
            ["grep", "-a", "-E", "-v", "--line-buffered", *patterns],
            stdin=subprocess.PIPE,
            stdout=2,
            start_new_session=True,  # Ctrl-C is for us
        )
    except OSError:  # no grep on this system: then the notes are seen
        yield
        return
    assert grep.stdin is not None
    before = os.dup(2)
    os.dup2(grep.stdin.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        grep.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # somebody else's child has it open
            grep.wait(_LONGEST_WAIT)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what TensorFlow's C++ prints from the terminal; its errors are raised besides."""
    with tempfile.TemporaryFile() as sink:
        before = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
