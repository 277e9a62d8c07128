"""Who does which run of a study, when several processes or machines share its directory.

`claims/NAME/` holds numbered files, each made once, by `O_EXCL`, and never removed. The highest
number says who has the run: its maker, as long as the file does not say how it ended, he is alive,
and he touches the file every few seconds. Who finds it ended or stale may make the next number. No
number is used twice, so of all who take over one claim, at once or after a long sleep, one succeeds
and the others find their file made.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from kd_jax import files
from kd_jax.errors import UserError

FOLDER = "claims"
_HEARTBEAT_SECONDS = 5.0
STOPPED = "stopped"  # how a claim may end that says nothing against its run


class Claims:
    """The claims that this process holds; a thread keeps them fresh.

    A context manager that lets go of all of them in the end.
    """

    def __init__(self, root: Path, stale_seconds: float, overtaken: Callable[[str], None]):
        """Name the place; nothing is done yet.

        Args:
          root: directory of the study.
          stale_seconds: how long a claim may go untouched.
          overtaken: is told, in the thread, a run that another process has taken over because this
            one was silent for so long. It should end this process.
        """
        self._folder = root / FOLDER
        self._stale_seconds = stale_seconds
        self._overtaken = overtaken
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> Claims:
        threading.Thread(target=self._keep_fresh, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        for name in list(self._held):
            with contextlib.suppress(UserError):  # it is stale soon
                self.release(name, STOPPED)

    def take(self, name: str) -> int | None:
        """Return the number of the new claim on a run, or None if another process has the run.

        Raises:
          UserError: the place cannot be written to.
        """
        number = self._newest(name)
        if number and self._is_held(self._path(name, number)):
            return None
        path = self._path(name, number + 1)
        maker = {
            "machine": machine(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                file.write(json.dumps(maker))
        except FileExistsError:
            return None
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): make the place writable, or choose "
                "another --workdir"
            ) from error
        with self._lock:
            self._held[name] = number + 1
        return number + 1

    def release(self, name: str, ended: str) -> None:
        """Let go of a run, saying how it ended."""
        with self._lock:  # or the thread could take the next one's claim for an overtaking one
            path = self._path(name, self._held.pop(name))
            files.write_json(path, {**_read(path), "ended": ended})

    def holder(self, name: str) -> str | None:
        """Return who has a run, in words, or None if nobody has."""
        number = self._newest(name)
        path = self._path(name, number)
        if not number or not self._is_held(path):
            return None
        said = _read(path)
        return f"process {said.get('process', '?')} on {said.get('machine', '?').split(' ')[0]}"

    def tries(self, name: str) -> int:
        """Return how many claims on a run have ended otherwise than by a signal to stop."""
        numbers = range(1, self._newest(name) + 1)
        return sum(_read(self._path(name, n)).get("ended") != STOPPED for n in numbers)

    def _path(self, name: str, number: int) -> Path:
        return self._folder / name / f"{number}.json"

    def _newest(self, name: str) -> int:
        return max((int(path.stem) for path in (self._folder / name).glob("*.json")), default=0)

    def _is_held(self, path: Path) -> bool:
        said = _read(path)
        if "ended" in said:
            return False
        if said.get("machine") == machine() and not _is_alive(said["process"]):
            return False
        return self._now() - _touched(path) < self._stale_seconds

    def _now(self) -> float:
        """Return the time by the clock that stamps the claims, which may be a file server's."""
        clock = self._folder / ".clock"
        try:
            clock.touch()
        except OSError:  # a place that is only read from
            return time.time()
        return _touched(clock)

    def _keep_fresh(self) -> None:
        while not self._closing.wait(_HEARTBEAT_SECONDS):
            with self._lock:
                for name, number in self._held.items():
                    if self._newest(name) > number:
                        self._overtaken(name)
                    try:
                        os.utime(self._path(name, number))
                    except OSError:  # the next beat may reach it again
                        continue


def machine() -> str:
    """Return what tells apart all places where a process number means another process.

    The host's name, how often it was started, and the container.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # no Linux
        pass
    return " ".join(parts)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed by hand
        return 0.0


def _read(path: Path) -> dict[str, Any]:
    """Return what a claim says; nothing if its maker has not come to writing it."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
