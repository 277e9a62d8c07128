"""Host memory: what there is, and whether a data set fits into it."""

from __future__ import annotations

import os
from pathlib import Path

from kd_jax.runtime.errors import UserError

# A data set is held once as it was read and once as it is used, where validation is cut out of it.
_COPIES = 2


def check_fits(num_bytes: int, what: str) -> None:
    """Raise `UserError` if a data set of so many bytes cannot be held; nothing is allocated.

    Args:
      num_bytes: of its decoded images, all splits.
      what: it, for the sentence.
    """
    free = available()
    if free is not None and _COPIES * num_bytes > free:
        raise UserError(
            f"{what} takes {_gigabytes(num_bytes)} of host memory as bytes and twice that while "
            f"validation is cut out of it, but {_gigabytes(free)} is available: take a smaller "
            "config.dataset.image_size, a part of it (a slice such as train[:10%], or fewer "
            "files), or a machine with more memory"
        )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still take; None where nobody says.

    The least of what the kernel says and of what the limits of its control groups leave (Linux).

    Args:
      root: of `/proc` and `/sys`.
    """
    left = [_free_memory(root), *_left_by_groups(root)]
    known = [value for value in left if value is not None]
    return min(known) if known else None


def _free_memory(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # no Linux: all of the memory, for want of what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _left_by_groups(root: Path) -> list[int | None]:
    """Return what each control group above this process leaves, in both versions of the kernel's.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    left = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            top, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            files = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        left += [_left_by_group(top.joinpath(*parts[:n]), *files) for n in range(len(parts) + 1)]
    return left


def _left_by_group(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        most = int((group / limit).read_text())  # "max", where there is no limit
        used = int((group / usage).read_text())
        statistics = (group / "memory.stat").read_text().splitlines()
        cached = sum(int(line.split()[1]) for line in statistics if line.split()[0] == reclaimable)
    except (OSError, ValueError, IndexError):
        return None
    return max(0, most - used + cached)
