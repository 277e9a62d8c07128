"""Leases on the runs of a study, for processes or machines that share its directory.

Each run has a numbered list of leases (`lease_files`); the newest one counts. It is valid until its
owner releases it, while the owner is alive and has refreshed it within `stale_seconds`; otherwise
any process may create the next one. A number is created once, so of several processes that take
over a stale lease, at once or after a suspension, exactly one succeeds.

File servers may fail for a while. What could not be written is written with a later refresh. A
lease that could not be refreshed for about as long as others wait before they take it over counts
as lost, because its owner cannot know whether another process has the run. `Leases` then calls
`on_lost`, by which the command (`study/__main__.py`) ends its process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from kd_jax.runtime import atomic_files
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.study import lease_files
from kd_jax.study.lease_files import LeaseFiles

_REFRESH_SECONDS = 5.0
_REMIND_SECONDS = 60.0
# Errors that waiting does not remove.
_PERMANENT_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG
}  # fmt: skip


@dataclasses.dataclass
class _Lease:
    """A lease of this process. Times are of the monotonic clock, in seconds.

    Attributes:
      path: of its file.
      content: intended for the file.
      is_written: whether the file has a content.
      refreshed_at: time of the last refresh that succeeded.
      failing_since: time of the first refresh that failed since then; None if none did.
      reminded_at: time of the last warning about that.
    """

    path: Path
    content: dict[str, Any]
    is_written: bool = False
    refreshed_at: float = 0.0
    failing_since: float | None = None
    reminded_at: float = 0.0


class Leases:
    """The leases that this process owns; a thread refreshes them.

    A context manager that starts the thread, and releases all leases at the end.
    """

    def __init__(self, root: Path, stale_seconds: float, on_lost: Callable[[str, str], None]):
        """Store the arguments; nothing is read or written yet.

        Args:
          root: directory of the study.
          stale_seconds: age at which a lease that was not refreshed may be taken over.
          on_lost: called in the thread with the name of a run and the reason when this process
            must not go on with the run, because another one has it or may have it. It should end
            this process.
        """
        self._files = LeaseFiles(root, stale_seconds)
        self._stale_seconds = stale_seconds
        self._on_lost = on_lost
        self._leases: dict[str, _Lease] = {}
        self._unwritten_releases: list[_Lease] = []
        self._unreachable_since: float | None = None
        self._lock = threading.Lock()
        self._close_event = threading.Event()

    def __enter__(self) -> Leases:
        threading.Thread(target=self._refresh_until_closed, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_event.set()
        for name in list(self._leases):
            self.release(name, lease_files.STOPPED)
        for lease in self._unwritten_releases:  # the last attempt; else the lease becomes stale
            with contextlib.suppress(UserError):
                atomic_files.write_json(lease.path, lease.content)

    def acquire(self, name: str) -> int | None:
        """Acquire the lease of a run.

        Returns:
          the number of the new lease; None if another process has one, or if the directory cannot
          be reached for the moment.

        Raises:
          UserError: the directory cannot be written to, or was unreachable for `stale_seconds`.
        """
        try:
            new_lease = self._files.create(name)
        except OSError as error:
            self._wait_or_raise(self._files.folder(name), error)
            return None
        self._unreachable_since = None
        if new_lease is None:
            return None
        number, file = new_lease
        content = lease_files.new_content()
        lease = _Lease(self._files.path(name, number), content, refreshed_at=time.monotonic())
        try:
            with file:
                file.write(json.dumps(content))
            lease.is_written = True
        except OSError as error:  # the file exists, so the lease is owned
            self._report_failure(lease, name, error)
        with self._lock:
            self._leases[name] = lease
        return number

    def release(self, name: str, outcome: str) -> None:
        """Release a lease, with the outcome of the run: now, or when it can be written."""
        # Under the lock: the thread could mistake the lease of the next owner for a takeover.
        with self._lock:
            lease = self._leases.pop(name)
            lease.content["ended"] = outcome
            try:
                atomic_files.write_json(lease.path, lease.content)
            except UserError as error:
                logger.warning("the lease of %s is released later: %s", name, error)
                self._unwritten_releases.append(lease)

    def owner(self, name: str) -> str | None:
        """Return the owner of a run's lease in words; None if there is no valid lease."""
        try:
            number = self._files.newest(name)
            path = self._files.path(name, number)
            if not number or not self._files.is_valid(path):
                return None
        except OSError:  # `acquire` reports it
            return None
        content = lease_files.read(path)
        place = str(content.get("machine") or "?").split()[0]
        return f"process {content.get('process', '?')} on {place}"

    def attempts(self, name: str) -> int:
        """Return how many leases a run has had, without those that a signal ended."""
        try:
            numbers = self._files.numbers(name)
        except OSError:  # `acquire` reports it
            return 0
        contents = [lease_files.read(self._files.path(name, number)) for number in numbers]
        return sum(content.get("ended") != lease_files.STOPPED for content in contents)

    def refresh(self) -> None:
        """Refresh all leases, and write what could not be written before; the thread calls it."""
        with self._lock:
            for lease in list(self._unwritten_releases):
                with contextlib.suppress(UserError):
                    atomic_files.write_json(lease.path, lease.content)
                    self._unwritten_releases.remove(lease)
            for name, lease in list(self._leases.items()):
                try:
                    self._refresh_lease(name, lease)
                except Exception as error:  # of any kind: the next refresh may succeed
                    self._report_failure(lease, name, error)

    def _refresh_until_closed(self) -> None:
        while not self._close_event.wait(_REFRESH_SECONDS):
            self.refresh()

    def _refresh_lease(self, name: str, lease: _Lease) -> None:
        """Refresh a lease, or report that it is lost.

        Raises:
          OSError, UserError: the file cannot be reached.
        """
        now = time.monotonic()
        has_successor = self._files.newest(name) > int(lease.path.stem)
        if has_successor or self._was_recreated(lease):
            self._on_lost(name, "was taken over by another process, since this one was silent")
            return
        if not lease.is_written:
            atomic_files.write_json(lease.path, lease.content)
            lease.is_written = True
        os.utime(lease.path)
        lease.refreshed_at = now
        if lease.failing_since is not None:
            logger.warning("the lease of %s is fresh again", name)
            lease.failing_since = None

    def _was_recreated(self, lease: _Lease) -> bool:
        """Return whether another process created the file again after it was removed by hand.

        If nobody has, this process does.
        """
        try:
            content = json.loads(lease.path.read_text())
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                lease.path.touch(exist_ok=False)
                lease.is_written = False
                return False
            content = lease_files.read(lease.path)
        except ValueError:  # not written yet
            return False
        token = lease.content["token"]
        return isinstance(content, dict) and content.get("token", token) != token

    def _wait_or_raise(self, place: Path, error: OSError) -> None:
        """Warn that a directory is unreachable; raise `UserError` if waiting does not help."""
        now = time.monotonic()
        is_first = self._unreachable_since is None
        start = now if self._unreachable_since is None else self._unreachable_since
        self._unreachable_since = start
        if error.errno in _PERMANENT_ERRORS or now - start >= self._stale_seconds:
            raise UserError(
                f"{place} cannot be written ({error.strerror}): make the place writable, or choose "
                "another --workdir"
            ) from error
        if is_first:
            logger.warning("%s cannot be written (%s): trying again", place, error.strerror)

    def _report_failure(self, lease: _Lease, name: str, error: Exception) -> None:
        """Warn once a minute that a lease cannot be refreshed; report it as lost after a while."""
        now = time.monotonic()
        reason = " ".join(str(error).split())
        silent_seconds = now - lease.refreshed_at
        if silent_seconds >= self._stale_seconds - 2 * _REFRESH_SECONDS:
            self._on_lost(
                name,
                f"could not be kept for {silent_seconds:.0f} s, and others may take it over "
                f"({reason})",
            )
        if lease.failing_since is None or now - lease.reminded_at >= _REMIND_SECONDS:
            lease.failing_since = now if lease.failing_since is None else lease.failing_since
            lease.reminded_at = now
            logger.warning(
                "the lease of %s cannot be kept fresh (%s): trying again; after %.0f s more this "
                "process stops",
                name, reason, max(0.0, self._stale_seconds - silent_seconds),
            )  # fmt: skip
