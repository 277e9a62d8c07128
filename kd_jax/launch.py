r"""Run one experiment in several processes of this machine.

    python -m kd_jax.launch --processes=2 [--devices_per_process=2] -- \
        --config=configs/NAME.py --workdir=DIR [...]

The arguments after `--` go to `kd_jax.main` in every process. Each line that a process prints is
marked with the number of the process. When one fails, the others have a minute to report it and to
end by themselves, and are then killed. Processes on several machines are started by the scheduler
of those machines: see docs/pods.md.
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

_PROCESSES = flags.DEFINE_integer("processes", 2, "Number of processes.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices_per_process",
    0,
    "CPU devices of each process; 0: as without this command.",
    lower_bound=0,
)
_GRACE_SECONDS = 60.0  # in which the other processes may end, once one has failed
_POLL_SECONDS = 0.1


def main(argv: Sequence[str]) -> None:
    """Start the processes, print their lines, and exit with the code of the first that failed."""
    arguments = list(argv[1:])
    if not arguments:
        raise UserError("nothing to run: expected `-- --config=... --workdir=...`")
    coordinator = f"127.0.0.1:{_free_port()}"
    environment = dict(os.environ)
    if _DEVICES.value:
        environment["JAX_NUM_CPU_DEVICES"] = str(_DEVICES.value)
    processes: list[subprocess.Popen[str]] = []
    threads = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: _send(processes, number))
    for number in range(_PROCESSES.value):
        process = subprocess.Popen(
            [sys.executable, "-m", "kd_jax.main", *arguments, f"--coordinator={coordinator}",
             f"--processes={_PROCESSES.value}", f"--process={number}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,  # so that Ctrl-C reaches them once, through this process
        )  # fmt: skip
        processes.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source is not None
            thread = threading.Thread(target=_print_lines, args=(source, target, number))
            thread.start()
            threads.append(thread)
    code = _wait(processes)
    for thread in threads:
        thread.join()
    sys.exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _print_lines(source: IO[str], target: IO[str], number: int) -> None:
    """Copy the lines of a process to `target`, marked with its number."""
    for line in source:
        if not line.startswith("[Gloo]"):  # the library's greeting, which no setting turns off
            with contextlib.suppress(OSError):  # the reader is gone, and training goes on
                target.write(f"[{number}] {line}")
                target.flush()


def _send(processes: Sequence[subprocess.Popen[str]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Wait for all processes; return the exit code of the first that failed, or 0."""
    code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        failures = [process.returncode for process in processes if process.poll() not in (None, 0)]
        if failures and not code:
            code, deadline = failures[0], time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    failures = [process.returncode for process in processes if process.returncode]
    code = code or (failures[0] if failures else 0)
    return code if code >= 0 else 128 - code  # ended by a signal: the code that a shell gives


if __name__ == "__main__":
    run_command(main, takes_words=True)
