"""What lies below a directory of images: one rule for names, links and kinds of files.

Hidden names are passed over, links are followed, each directory is looked into once, and whatever
is not read is counted.
"""

from __future__ import annotations

import collections
import errno
import os
import stat
import unicodedata
from pathlib import Path

from kd_jax.data import image_files
from kd_jax.runtime.errors import UserError

# What systems put beside people's files: archives of a Mac, a Synology's thumbnails.
_HIDDEN = ("__MACOSX", "@eaDir")
_MOST_KINDS = 8  # in a sentence

Skipped = collections.Counter[str]


def is_hidden(name: str) -> bool:
    """Tell whether a name is of no image and no class: `.ipynb_checkpoints`, `._1.png`."""
    return name.startswith(".") or name in _HIDDEN


def normal(name: str) -> str:
    """Return a name in the form in which names are compared (NFC): some systems decompose it."""
    return unicodedata.normalize("NFC", name)


def shown(name: str) -> str:
    """Return a name as it can stand in a sentence of one line."""
    return name if name.isprintable() else repr(name)[1:-1]


def is_directory(path: Path | str) -> bool:
    """Tell whether a path leads to a directory.

    Raises:
      UserError: it may not be looked at.
    """
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_there(path: Path | str) -> bool:
    """Tell whether a path leads to anything.

    Raises:
      UserError: it may not be looked at.
    """
    return _status(path) is not None


def holds_images(directory: Path) -> bool:
    """Tell whether a directory itself holds a file that has the ending of an image.

    Raises:
      UserError: it cannot be looked into.
    """
    return any(
        not is_hidden(entry.name) and Path(entry.name).suffix.lower() in image_files.suffixes()
        for entry in _entries(directory)
    )


def directories(directory: Path) -> list[str]:
    """Return the names of the directories in a directory that are not hidden, in their order.

    Raises:
      UserError: it cannot be looked into.
    """
    names = [
        entry.name
        for entry in _entries(directory)
        if not is_hidden(entry.name) and is_directory(entry.path)
    ]
    return sorted(names, key=lambda name: (normal(name), name))


def others(directory: Path) -> Skipped:
    """Count what lies in a directory and is no directory to look into."""
    skipped: Skipped = collections.Counter()
    for entry in _entries(directory):
        if is_hidden(entry.name):
            skipped["hidden"] += 1
        elif not is_directory(entry.path):
            skipped["beside the class directories"] += 1
    return skipped


def images(directory: Path) -> tuple[list[tuple[Path, os.stat_result]], Skipped]:
    """Return the images below a directory in the order of their paths, and count what else is.

    Links are followed. A link to a directory that was looked into before, or that lies above, would
    give images twice or for ever, so it is passed over.

    Raises:
      UserError: a directory cannot be looked into.
    """
    files: list[tuple[Path, os.stat_result]] = []
    skipped: Skipped = collections.Counter()
    ancestors = {*directory.absolute().parents, *Path(os.path.realpath(directory)).parents}
    visited = {_identity(status) for path in ancestors if (status := _status(path))}
    stack = [directory]
    while stack:
        place = stack.pop()
        status = _status(place)
        if status is None or _identity(status) in visited:
            skipped["links to a directory that is read already"] += 1
            continue
        visited.add(_identity(status))
        subdirectories = []
        for entry in sorted(_entries(place), key=lambda entry: entry.name):
            path = place / entry.name
            status = _status(path)
            if is_hidden(entry.name):
                skipped["hidden"] += 1
            elif status is None:
                skipped["links to nothing"] += 1
            elif stat.S_ISDIR(status.st_mode):
                subdirectories.append(path)
            elif not stat.S_ISREG(status.st_mode):
                skipped["neither files nor directories"] += 1
            elif path.suffix.lower() in image_files.suffixes():
                files.append((path, status))
            else:
                skipped[path.suffix.lower() or "without an ending"] += 1
        stack += reversed(subdirectories)
    files.sort(key=lambda pair: (tuple(map(normal, pair[0].parts)), pair[0].parts))
    return files, skipped


def in_words(skipped: Skipped) -> str:
    """Say what was counted, the most frequent first."""
    parts = [f"{count} {shown(kind)}" for kind, count in skipped.most_common(_MOST_KINDS)]
    if num_further := len(skipped) - len(parts):
        parts.append(f"{num_further} further kinds")
    return ", ".join(parts)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{directory} cannot be looked into ({error.strerror}): make it readable, or take it "
            "away"
        ) from None


def _status(path: Path | str) -> os.stat_result | None:
    """Return what a path leads to; None if that is nothing."""
    try:
        return os.stat(path)
    except ValueError:  # a name that no file can have
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise UserError(
            f"{path} cannot be looked at ({error.strerror}): make it readable, or take it away"
        ) from None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
