"""The files of leases: who has, or had, the lease of a run.

`claims/NAME/` holds numbered JSON files, each created once, by `O_EXCL`, and never removed; other
names are ignored. The fields are `machine`, `process`, `since`, `token`, and `ended` after a
release.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from pathlib import Path
from typing import Any, TextIO

FOLDER = "claims"  # of a study's directory
STOPPED = "stopped"  # the outcome of an attempt that a signal ended
_LEASE_FILE = re.compile(r"([1-9][0-9]{0,9})\.json")


class LeaseFiles:
    """The lease files of a study; any process may read them.

    Methods raise `OSError` while the file system fails.
    """

    def __init__(self, root: Path, stale_seconds: float):
        """Name the directory of a study, and the age at which a lease is stale."""
        self._folder = root / FOLDER
        self._stale_seconds = stale_seconds

    def folder(self, name: str) -> Path:
        """Return the directory of a run's leases."""
        return self._folder / name

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a run's leases, in no order."""
        try:
            names = os.listdir(self._folder / name)
        except FileNotFoundError:
            return []
        return [int(match[1]) for match in map(_LEASE_FILE.fullmatch, names) if match]

    def newest(self, name: str) -> int:
        """Return the number of a run's newest lease; 0 if it has none."""
        return max(self.numbers(name), default=0)

    def path(self, name: str, number: int) -> Path:
        """Return the path of a lease."""
        return self._folder / name / f"{number}.json"

    def create(self, name: str) -> tuple[int, TextIO] | None:
        """Create the next lease of a run; None if another process has it, or was faster.

        Returns:
          the number, and the empty file, open for writing.
        """
        number = self.newest(name)
        if number and self.is_valid(self.path(name, number)):
            return None
        path = self.path(name, number + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return number + 1, open(path, "x", encoding="utf-8")
        except FileExistsError:
            return None

    def is_valid(self, path: Path) -> bool:
        """Return whether a lease has not ended, its owner is alive, and it is not stale."""
        content = read(path)
        if "ended" in content:
            return False
        process = content.get("process")
        if content.get("machine") == machine() and type(process) is int and not is_alive(process):
            return False
        return self._now() - _modified(path) < self._stale_seconds

    def _now(self) -> float:
        """Return the time by the clock that stamps the leases, which may be a file server's."""
        clock = self._folder / ".clock"
        try:
            clock.touch()
        except OSError:  # read-only
            return time.time()
        return _modified(clock)


def new_content() -> dict[str, Any]:
    """Return the content of a new lease of this process."""
    return {
        "machine": machine(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "token": secrets.token_hex(8),
    }


def read(path: Path) -> dict[str, Any]:
    """Return the content of a lease; empty if its owner has not written it yet."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def machine() -> str:
    """Return an identifier of the places that share process numbers.

    Made of the name of the host, its boot, and the container.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        pass
    return " ".join(parts)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _modified(path: Path) -> float:
    """Return when a file was last touched, in seconds since 1970; 0 if it does not exist.

    Raises:
      OSError: the file cannot be read.
    """
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed by hand
        return 0.0
