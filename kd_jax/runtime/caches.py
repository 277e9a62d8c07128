"""Where things that can be made again are kept: decoded data sets, compiled programs.

What is being made has a directory of its own with a lock in it. The lock dies with its process, so
the next start can tell what a killed one left from what another is making right now.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there age alone tells what was left
    fcntl = None  # type: ignore[assignment]

from kd_jax.runtime.errors import local

_MAKING, _LOCK = "making-", "lock"
_OF_OLD = "tmp"  # how earlier versions called theirs, without a lock
_OLD_SECONDS = 86_400.0


def directory(kind: str) -> Path:
    """Return the folder for one kind of cached thing; it need not exist yet.

    `KD_JAX_CACHE_DIR` moves all of them; the default follows the XDG convention.
    """
    root = os.environ.get("KD_JAX_CACHE_DIR")
    if root:
        return local(root, "KD_JAX_CACHE_DIR") / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return local(base, "XDG_CACHE_HOME") / "kd_jax" / kind


@contextlib.contextmanager
def workspace(place: Path) -> Iterator[Path]:
    """Give an empty directory in a cache to make something in; in the end it is removed.

    What killed processes left there is removed first.

    Raises:
      OSError: the place cannot be written to.
    """
    place.mkdir(parents=True, exist_ok=True)
    clean(place)
    path, lock = _make(place)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def clean(place: Path) -> None:
    """Remove what killed processes left half made; what living ones are making stays."""
    with contextlib.suppress(OSError):  # it is not there, or not ours: nothing to clean
        for path in list(place.iterdir()):
            if not path.name.startswith((_MAKING, _OF_OLD)):
                continue
            with contextlib.suppress(OSError):
                _remove_if_left(path)


def _make(place: Path) -> tuple[Path, int | None]:
    """Return a new directory, and its lock where there are locks."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_MAKING, dir=place))
        if fcntl is None:
            return path, None
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between its making and its locking another start may have taken it for left.
                if os.path.samestat(os.fstat(lock), os.stat(path / _LOCK)):
                    return path, lock
            except (BlockingIOError, FileNotFoundError):
                pass
            except OSError:  # a file system without locks
                os.close(lock)
                return path, None
            os.close(lock)


def _remove_if_left(path: Path) -> None:
    """Remove a directory that nobody works in: while its lock is held, so that nobody begins to."""
    left = time.time() - path.stat().st_mtime > _OLD_SECONDS
    if fcntl is None or not path.name.startswith(_MAKING):
        if left:
            shutil.rmtree(path, ignore_errors=True)
        return
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = True
        except BlockingIOError:
            left = False
        except OSError:  # a file system without locks
            pass
        if left:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
