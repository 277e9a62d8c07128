"""Who does which run of a study, when several processes or machines share its directory.

`claims/NAME/` holds numbered files, each made once, by `O_EXCL`, and never removed. The highest
number says who has the run: its maker, as long as the file does not say how it ended, he is alive,
and he touches the file every few seconds. Who finds it ended or stale may make the next number. No
number is used twice, so of all who take over one claim, at once or after a long sleep, one succeeds
and the others find their file made. Files under other names are not looked at.

The place may fail for a while, as file servers do. What could not be written is written with a
later beat; a claim that was out of reach for as long as others wait before they take it over counts
as lost, because nobody can know any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from kd_jax.runtime import atomic_files
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

FOLDER = "claims"
_HEARTBEAT_SECONDS = 5.0
_REMIND_SECONDS = 60.0
STOPPED = "stopped"  # how a claim may end that says nothing against its run
_NUMBERED = re.compile(r"([1-9][0-9]{0,9})\.json")
# What does not go away by waiting.
_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


@dataclasses.dataclass
class _Own:
    """A claim of this process.

    Attributes:
      path: of its file.
      said: what the file is to say.
      written: whether it does.
      fresh_at: when it was last touched, by the monotonic clock.
      failing_since, reminded_at: when that last failed first, and was last told; None: it does not.
    """

    path: Path
    said: dict[str, Any]
    written: bool = False
    fresh_at: float = 0.0
    failing_since: float | None = None
    reminded_at: float = 0.0


class Leases:
    """The claims that this process holds; a thread keeps them fresh.

    A context manager that lets go of all of them in the end.
    """

    def __init__(self, root: Path, stale_seconds: float, lost: Callable[[str, str], None]):
        """Name the place; nothing is done yet.

        Args:
          root: directory of the study.
          stale_seconds: how long a claim may go untouched.
          lost: is told, in the thread, a run that this process must not go on with, and why:
            another has taken it over, or may have. It should end this process.
        """
        self._folder = root / FOLDER
        self._stale_seconds = stale_seconds
        self._lost = lost
        self._held: dict[str, _Own] = {}
        self._released: list[_Own] = []  # and not yet written
        self._unreachable_since: float | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> Leases:
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
            self.release(name, STOPPED)
        for own in self._released:  # the last try; else it is stale soon
            with contextlib.suppress(UserError):
                atomic_files.write_json(own.path, own.said)

    def take(self, name: str) -> int | None:
        """Return the number of the new claim on a run, or None if it cannot be had now.

        Because another process has it, or the place fails for the moment.

        Raises:
          UserError: the place cannot be written to, or has failed for as long as a claim may go
            untouched.
        """
        try:
            number = self._newest(name)
            if number and self._is_held(self._path(name, number)):
                self._unreachable_since = None
                return None
            path = self._path(name, number + 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = open(path, "x", encoding="utf-8")  # noqa: SIM115
            except FileExistsError:
                self._unreachable_since = None
                return None
        except OSError as error:
            self._wait_or_refuse(self._folder / name, error)
            return None
        self._unreachable_since = None
        said = {
            "machine": machine(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "token": secrets.token_hex(8),
        }
        own = _Own(path, said, fresh_at=time.monotonic())
        try:
            with file:
                file.write(json.dumps(said))
            own.written = True
        except OSError as error:  # it is ours all the same
            self._complain(own, name, error)
        with self._lock:
            self._held[name] = own
        return number + 1

    def release(self, name: str, ended: str) -> None:
        """Let go of a run, saying how it ended: at once, or when the place can be written again."""
        with self._lock:  # or the thread could take the next one's claim for one that took it over
            own = self._held.pop(name)
            own.said["ended"] = ended
            try:
                atomic_files.write_json(own.path, own.said)
            except UserError as error:
                logger.warning("the claim on %s is released later: %s", name, error)
                self._released.append(own)

    def holder(self, name: str) -> str | None:
        """Return who has a run, in words, or None if nobody has."""
        try:
            number = self._newest(name)
            path = self._path(name, number)
            if not number or not self._is_held(path):
                return None
        except OSError:  # it is said where the claim is to be taken
            return None
        said = _read(path)
        place = str(said.get("machine") or "?").split()[0]
        return f"process {said.get('process', '?')} on {place}"

    def tries(self, name: str) -> int:
        """Return how many claims on a run have ended otherwise than by a signal to stop."""
        try:
            numbers = self._numbers(name)
        except OSError:  # it is said where the claim is to be taken
            return 0
        return sum(_read(self._path(name, n)).get("ended") != STOPPED for n in numbers)

    def _path(self, name: str, number: int) -> Path:
        return self._folder / name / f"{number}.json"

    def _numbers(self, name: str) -> list[int]:
        """Return the numbers of a run's claims, in no order.

        Raises:
          OSError: the place cannot be read.
        """
        try:
            names = os.listdir(self._folder / name)
        except FileNotFoundError:
            return []
        return [int(match[1]) for match in map(_NUMBERED.fullmatch, names) if match]

    def _newest(self, name: str) -> int:
        return max(self._numbers(name), default=0)

    def _is_held(self, path: Path) -> bool:
        said = _read(path)
        if "ended" in said:
            return False
        process = said.get("process")
        if said.get("machine") == machine() and type(process) is int and not _is_alive(process):
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

    def _wait_or_refuse(self, place: Path, error: OSError) -> None:
        """Complain about a place that could not be used; raise `UserError` if waiting is no use."""
        now = time.monotonic()
        first = self._unreachable_since is None
        since = now if self._unreachable_since is None else self._unreachable_since
        self._unreachable_since = since
        if error.errno in _LASTING or now - since >= self._stale_seconds:
            raise UserError(
                f"{place} cannot be written ({error.strerror}): make the place writable, or choose "
                "another --workdir"
            ) from error
        if first:
            logger.warning("%s cannot be written (%s): trying again", place, error.strerror)

    def _keep_fresh(self) -> None:
        while not self._closing.wait(_HEARTBEAT_SECONDS):
            self.beat()

    def beat(self) -> None:
        """Touch every claim, and write what could not be written before; the thread calls this."""
        with self._lock:
            for own in list(self._released):
                with contextlib.suppress(UserError):
                    atomic_files.write_json(own.path, own.said)
                    self._released.remove(own)
            for name, own in list(self._held.items()):
                try:
                    self._touch(name, own)
                except Exception as error:  # whatever it is, the next beat may go well
                    self._complain(own, name, error)

    def _touch(self, name: str, own: _Own) -> None:
        """Touch a claim; tell if it is lost.

        Raises:
          OSError, UserError: the place cannot be reached.
        """
        began = time.monotonic()
        if self._newest(name) > int(own.path.stem) or self._is_anothers(own):
            self._lost(name, "was taken over by another process, since this one was silent")
            return
        if not own.written:
            atomic_files.write_json(own.path, own.said)
            own.written = True
        os.utime(own.path)
        own.fresh_at = began
        if own.failing_since is not None:
            logger.warning("the claim on %s is fresh again", name)
            own.failing_since = None

    def _is_anothers(self, own: _Own) -> bool:
        """Tell whether a claim was removed by hand and made again by another process."""
        try:
            found = json.loads(own.path.read_text())
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                own.path.touch(exist_ok=False)
                own.written = False
                return False
            found = _read(own.path)
        except ValueError:  # not written yet
            return False
        return (
            isinstance(found, dict) and found.get("token", own.said["token"]) != own.said["token"]
        )

    def _complain(self, own: _Own, name: str, error: Exception) -> None:
        """Say that a claim cannot be kept, each minute, and tell when it must count as lost."""
        now = time.monotonic()
        reason = " ".join(str(error).split())
        silent = now - own.fresh_at
        if silent >= self._stale_seconds - 2 * _HEARTBEAT_SECONDS:
            self._lost(
                name,
                f"could not be kept for {silent:.0f} s, and others may take it over ({reason})",
            )
        if own.failing_since is None or now - own.reminded_at >= _REMIND_SECONDS:
            own.failing_since = now if own.failing_since is None else own.failing_since
            own.reminded_at = now
            logger.warning(
                "the claim on %s cannot be kept fresh (%s): trying again; after %.0f s more this "
                "process stops",
                name, reason, max(0.0, self._stale_seconds - silent),
            )  # fmt: skip


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
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _touched(path: Path) -> float:
    """Return when a file was last touched.

    Raises:
      OSError: the place cannot be read.
    """
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
