"""Where things that can be made again are kept: decoded data sets, compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def directory(kind: str) -> Path:
    """Return the folder for one kind of cached thing; it need not exist yet.

    `KD_JAX_CACHE_DIR` moves all of them; the default follows the XDG convention.
    """
    root = os.environ.get("KD_JAX_CACHE_DIR")
    if root:
        return Path(root).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "kd_jax" / kind
