r"""Run one experiment in several processes of this machine.

    python -m kd_jax.launch --processes=2 [--devices_per_process=2] -- \
        --config=configs/NAME.py --workdir=DIR [...]

What stands after `--` goes to `kd_jax.main` in every process. Each line that they print is marked
with the process's number. When one ends badly the others are given a while to say so themselves,
and are ended. Between machines, whoever starts the processes there does this: see docs/pods.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from absl import flags

from kd_jax.runtime.errors import UserError, run_command

_PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices_per_process", 0, "CPU devices of each; 0: as without this command.", lower_bound=0
)
_GRACE_SECONDS = 60.0  # for the others, once one has failed
_POLL_SECONDS = 0.1


def main(argv: Sequence[str]) -> None:
    """Start them, pass on what they print, and leave with the first bad exit code."""
    arguments = list(argv[1:])
    if not arguments:
        raise UserError("nothing to run: expected `-- --config=... --workdir=...`")
    coordinator = f"127.0.0.1:{_free_port()}"
    environment = dict(os.environ)
    if _DEVICES.value:
        environment["JAX_NUM_CPU_DEVICES"] = str(_DEVICES.value)
    started: list[subprocess.Popen[str]] = []
    threads = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: _send(started, number))
    for number in range(_PROCESSES.value):
        process = subprocess.Popen(
            [sys.executable, "-m", "kd_jax.main", *arguments, f"--coordinator={coordinator}",
             f"--processes={_PROCESSES.value}", f"--process={number}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,  # a Ctrl-C reaches them through us, once
        )  # fmt: skip
        started.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source is not None
            thread = threading.Thread(target=_pass_on, args=(source, target, number))
            thread.start()
            threads.append(thread)
    code = _wait(started)
    for thread in threads:
        thread.join()
    sys.exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pass_on(source: IO[str], target: IO[str], number: int) -> None:
    for line in source:
        if not line.startswith("[Gloo]"):  # its greeting, which no setting turns off
            with contextlib.suppress(OSError):  # nobody reads any more: go on all the same
                target.write(f"[{number}] {line}")
                target.flush()


def _send(processes: Sequence[subprocess.Popen[str]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Wait for all; return the exit code of the first that failed, or 0."""
    code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        bad = [process.returncode for process in processes if process.poll() not in (None, 0)]
        if bad and not code:
            code, deadline = bad[0], time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    bad = [process.returncode for process in processes if process.returncode]
    code = code or (bad[0] if bad else 0)
    return code if code >= 0 else 128 - code  # ended by a signal, as shells say it


if __name__ == "__main__":
    run_command(main, takes_words=True)
