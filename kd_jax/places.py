"""Places that people name: of this machine, or refused."""

from __future__ import annotations

import re
from pathlib import Path

from kd_jax.errors import UserError

# Also with one slash, which is what `pathlib` leaves of two. A drive's letter is no scheme.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_local(place: str | Path, what: str) -> None:
    """Raise `UserError` if a path is a URL such as `gs://bucket/x`: nothing here reads those.

    Args:
      place: as it was given.
      what: the option that it was given for, for the sentence.
    """
    if _SCHEME.match(str(place)):
        raise UserError(
            f"{what} is {str(place)!r}, expected a path on this machine: kd_jax reads and writes "
            "no remote places; copy it here, or mount it and give the path where it is mounted"
        )


def local(place: str | Path, what: str) -> Path:
    """Return a path that people gave, `~` expanded.

    Raises:
      UserError: it is a URL.
    """
    check_local(place, what)
    return Path(place).expanduser()
