"""What a person sees on the terminal: our own lines, and only the errors of the libraries.

How far a run is, is one line that is written anew on a terminal or in a notebook, and a line of the
log each time anywhere else: in a file, or behind a pipe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger("kd_jax")
EXIT_READER_GONE = 141  # what a shell gives for a command that SIGPIPE ended
_PROGRESS = "kd_jax_progress"  # attribute of the log records that say how far a run is


def progress(step: int, total: int, name: str, words: str) -> None:
    """Say how far a run is.

    Args:
      step: of how many are made.
      total: how many there are.
      name: of the run, to begin the line with; empty for a run alone.
      words: what else there is to say.
    """
    text = f"{name}step {step}/{total}  {words}"
    logger.info("%s", text, extra={_PROGRESS: (step, total, f"{name}{words}")})


def end_progress() -> None:
    """Take the live line away, where there is one."""
    for handler in logger.handlers:
        if isinstance(handler, LiveHandler):
            handler.end()


class LiveHandler(logging.StreamHandler):
    """Log lines above one that is written anew: how far the run is."""

    def __init__(self) -> None:
        """Begin without a line."""
        super().__init__(sys.stderr)
        self._bar: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log line, or the live one."""
        step, total, words = getattr(record, _PROGRESS, (0, 0, ""))
        if not total:
            from tqdm import tqdm

            with tqdm.external_write_mode(self.stream):
                super().emit(record)
            return
        try:
            if self._bar is None:
                self._bar = self._new_bar(total)
            self._bar.n = step
            self._bar.set_description_str(words)
        except Exception:  # as other handlers: what is told never ends what it is told of
            self.handleError(record)

    def end(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _new_bar(self, total: int) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=total,
            file=self.stream,
            leave=False,
            dynamic_ncols=True,
            bar_format="step {n_fmt}/{total_fmt} |{bar:16}| {desc}",
        )


def handler(line_format: logging.Formatter) -> logging.Handler:
    """Return what writes our lines to stderr, as suits what stderr is."""
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    new = LiveHandler() if is_notebook or _is_terminal() else logging.StreamHandler()
    new.setFormatter(line_format)
    return new


def _is_terminal() -> bool:
    """Tell whether stderr is a terminal that can write a line anew."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0  # some say 0: not how wide
    except OSError:  # it has no number
        return True


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
        logger.addHandler(handler(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")))


@contextlib.contextmanager
def until_the_reader_leaves() -> Iterator[None]:
    """End the process quietly where nobody reads what it prints any more, as behind `| head`."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as it is where it was closed
                sys.stdout.flush()  # or Python does it at its end, and complains
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:  # another pipe is broken
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in gone:
            os.dup2(nowhere, stream.fileno())
        sys.exit(EXIT_READER_GONE)


def _has_no_reader(stream: Any) -> bool:
    """Tell whether a stream is a pipe whose other end is closed."""
    if stream is None:
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # it has no number
        return False


def only_warnings() -> None:
    """Keep our own lines to warnings: one process of several tells how the run goes on."""
    logger.setLevel(logging.WARNING)


def _unraisable(unraisable: Any) -> None:
    """Report an error that nobody can catch, but for one that says nothing.

    After a failed write TensorStore still calls back into the event loop that Orbax has closed.
    """
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
