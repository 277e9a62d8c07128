"""Small files, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from kd_jax.runtime.errors import UserError

_PARTIAL = re.compile(r"\.kd_jax-[0-9]+-[0-9a-f]{16}\.partial")
STALE_SECONDS = 3600.0


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, in binary, which takes the place of `path` when the block ends.

    It lies beside `path` under a name of its own, so that any number of processes may write one
    file at once: a reader finds the old content or one writer's, whole. It is on the disk when it
    gets its name. If the block fails it is removed. What a killed writer left in the directory is
    removed by a later one.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".kd_jax-{os.getpid()}-{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more
            partial.unlink()
        raise
    _sync_directory(path.parent)
    remove_partial(path.parent, STALE_SECONDS)


def is_partial(path: Path) -> bool:
    """Tell whether a file is one that `replacing` has not given its name."""
    return _PARTIAL.fullmatch(path.name) is not None


def remove_partial(directory: Path, older_than_seconds: float = 0.0) -> None:
    """Remove what killed writers left in a directory; 0 seconds: whatever its age."""
    for path in directory.iterdir():
        if is_partial(path):
            remove_left(path, older_than_seconds)


def remove_left(path: Path, older_than_seconds: float = STALE_SECONDS) -> None:
    """Remove a file that a killed writer left, unless it is so young that one may live."""
    with contextlib.suppress(OSError):  # another process was faster, or it is not ours
        if time.time() - path.stat().st_mtime >= older_than_seconds:
            path.unlink()


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Wait for others that are in such a block for a directory, and keep them out of this one.

    Where the system has no locks nobody waits.
    """
    handle = None
    with contextlib.suppress(OSError):  # what is written there says better why it cannot be
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _sync_directory(directory: Path) -> None:
    """Make a new name in a directory survive a power cut, where the system can do that."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except PermissionError:  # Windows opens no directory
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(handle)


def check_place(directory: Path, option: str) -> None:
    """Raise `UserError` unless files can be written to an existing directory."""
    if not directory.is_dir():
        raise UserError(f"{option}: {directory} is no directory: make it, or choose another place")
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"kd_jax")
    except OSError as error:
        raise UserError(
            f"{option}: {directory} cannot be written to ({error.strerror}): make it writable, or "
            "choose another place"
        ) from None


def check_not_read(output: Path, inputs: Iterable[Path], option: str) -> None:
    """Raise `UserError` if a file to write is one of those that are read, by whatever name.

    Args:
      output: the file to write.
      inputs: the files that are read; some may not be there.
      option: that named the output, with its value.
    """
    if not output.exists():
        return
    for path in inputs:
        with contextlib.suppress(OSError):
            if os.path.samefile(output, path):
                raise UserError(
                    f"{option} would take the place of {path}, which is read: name another file"
                )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and its directory, so that a kill leaves the old content or the new.

    Raises:
      UserError: it cannot be written: the disk is full, or the place is not ours.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room there, or choose another place"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def sha256_of(path: str | Path) -> str:
    """Return the hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Return a JSON file's content, or None if it is not there.

    Raises:
      UserError: it is there and is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it, and a run makes it anew"
        ) from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `.jsonl` file; a line that a kill cut short is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
