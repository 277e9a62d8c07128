"""Stop a run on SIGTERM or SIGINT: what it has done is saved, and it exits within seconds.

Python runs signal handlers only between two of its own instructions, and a compilation may keep it
from them for a minute. So the signals are read from a pipe, by a thread. The first asks the loop to
save and leave; while there is nothing to save (set-up, compilation, the final measurement) it ends
the process at once, as a second one does at any time. Nothing is harmed by that: every file is
written whole or not at all.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command, given again, goes on
_ECHO_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """The run was asked to stop, has saved, and leaves."""


class StopRequest:
    """Whether the run has been asked to stop; `requested` is read after every step.

    Attributes:
      requested: the signal's name, or None.
    """

    def __init__(self, *, twice: bool = False):
        """Begin unasked.

        Args:
          twice: whether one signal may arrive twice, once directly and once through a parent.
        """
        self.requested: str | None = None
        self._asked_at = -math.inf
        self._echo_seconds = _ECHO_SECONDS if twice else 0.0
        self._lock = threading.Lock()
        self._has_unsaved_work = False

    def listen(self) -> StopRequest:
        """Take over the signals of this process; only a command does this, and only once."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)  # so that the pipe is all that happens
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()
        return self

    def has_unsaved_work(self, yes: bool) -> None:
        """Say whether there is anything to save before the process may end.

        If it was asked to stop and there is nothing to save any more, this does not return.
        """
        with self._lock:
            self._has_unsaved_work = yes
            # Only `request`, a signal, may end the process; a callback sets `requested` alone.
            name = self.requested if math.isfinite(self._asked_at) else None
        if name and not yes:
            _leave(f"stopped by {name}: the same command resumes")

    def request(self, name: str) -> None:
        """Ask the run to stop, as the signal `name` does."""
        with self._lock:
            now = time.monotonic()
            if now - self._asked_at < self._echo_seconds:
                return
            self._asked_at = now
            second, self.requested = self.requested is not None, name
            unsaved = self._has_unsaved_work
        if second or not unsaved:
            _leave(f"stopped by {name}: the same command resumes")

    def _read(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in _SIGNALS:
                    self.request(signal.Signals(number).name)


def _leave(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_STOPPED)
