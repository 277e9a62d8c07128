"""Places that people name: on this machine, or remote, which nothing here reads or writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Also with one slash, which is what `pathlib` leaves of two. A drive's letter is no scheme.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# A config file may take an argument that begins with a slash.
_FILE_AND_ARGUMENT = re.compile(r"[^:]*\.py:")
# Libraries that a teacher may be from, `onnx:/a/file`: a path may follow the colon.
LIBRARIES = ("keras", "onnx", "timm", "torch", "torchvision")
_LIBRARY = re.compile(rf"({'|'.join(LIBRARIES)}):")
_NO_PATHS = ("--coordinator", "--title")


def why_not(place: str | Path, what: str) -> str | None:
    """Return what is wrong with a path that is a URL such as `gs://bucket/x`; None if it is none.

    Args:
      place: as it was given.
      what: the option that it was given for.
    """
    if not _SCHEME.match(_LIBRARY.sub("", str(place), count=1)):
        return None
    return (
        f"{what} is {str(place)!r}, expected a path on this machine: kd_jax reads and writes no "
        "remote places; copy it here, or mount it and give the path where it is mounted"
    )


def why_not_in(arguments: Sequence[str]) -> str | None:
    """Return what is wrong with the first of a command's arguments that names a remote place."""
    previous = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        named = (
            (value, name) if equals else (argument, previous if previous[:2] == "--" else "a path")
        )
        is_config = named[1].lstrip("-") == "config" and _FILE_AND_ARGUMENT.match(named[0])
        if named[1] not in _NO_PATHS and not is_config and (problem := why_not(*named)):
            return problem
        previous = argument
    return None
