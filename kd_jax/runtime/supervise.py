"""Work in a child process, so that somebody is left to say why it ended.

A JAX runtime that loses another process of the run aborts its own, from a thread of C++, and no
Python of that process has the last word. So where several processes train together each is a pair:
the parent imports no JAX, waits, passes signals on, and turns the abort into a sentence.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

EXIT_PEER_GONE = 69  # EX_UNAVAILABLE of sysexits.h
GONE = (
    "error: another process of this run is gone or cannot be reached: start all of them again with "
    "the same command, and the run goes on from its newest checkpoint"
)


def go_on_in_child() -> None:
    """Return in a child of this process; the parent leaves with the child's exit code.

    To be called before anything has started threads. The child ends when its parent does.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.setpgid(0, 0)  # a terminal's Ctrl-C comes from the parent, and once
        threading.Thread(target=_end_with_parent, args=(reader,), daemon=True).start()
        return
    os.close(reader)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGABRT:
        print(GONE, file=sys.stderr, flush=True)
        code = EXIT_PEER_GONE
    os._exit(code if code >= 0 else 128 - code)  # ended by a signal, as shells say it


def _end_with_parent(reader: int) -> None:
    os.read(reader, 1)  # returns when the other end is closed, however the parent ended
    os._exit(EXIT_PEER_GONE)
