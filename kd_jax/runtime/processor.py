"""The class of this machine's processor: which vectors code may use, and so which forms are fast.

The class, and nothing else about the machine, decides how our sources are compiled and which form
each layer takes (`kernels/forms.py`): on all machines of a class our passes give the same bits.
What XLA compiles besides uses all that a processor has (`cache_key`). `KD_JAX_CPU=avx2` or
`KD_JAX_CPU=sse` limits a process to a lower class than its own.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

from kd_jax.runtime.errors import UserError

VARIABLE = "KD_JAX_CPU"
_CPU_INFO = Path("/proc/cpuinfo")


class Processor(NamedTuple):
    """A class of processors.

    Attributes:
      name: `avx512`, `avx2`, `sse`, `neon`, or `other`.
      lanes: float32 numbers of one vector register.
      flags: of the C++ compiler.
      xla_isa: the limit that keeps XLA to this class; empty where XLA has none.
      onednn_isa: the same for oneDNN, which is inside XLA and PyTorch.
      needs: flags of `/proc/cpuinfo` without which a processor is not of this class.
    """

    name: str
    lanes: int
    flags: tuple[str, ...] = ()
    xla_isa: str = ""
    onednn_isa: str = ""
    needs: tuple[str, ...] = ()


# x86-64 from the widest down; `flags` and `needs` are the levels v4, v3 and v2 of the psABI.
_X86 = (
    Processor(
        "avx512", 16, ("-march=x86-64-v4",), "AVX512", "AVX512_CORE",
        ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    ),
    Processor(
        "avx2", 8, ("-march=x86-64-v3",), "AVX2", "AVX2",
        ("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"),
    ),
    Processor("sse", 4, ("-march=x86-64-v2",), "SSE4_2", "SSE41",
        ("sse4_2", "ssse3", "popcnt", "cx16", "lahf_lm"),
    ),
)  # fmt: skip
_NEON = Processor("neon", 4)
_OTHER = Processor("other", 0)
CLASSES = {kind.name: kind for kind in (*_X86, _NEON, _OTHER)}


@functools.cache
def detected() -> Processor:
    """Return the class of the machine, whatever the limit."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return _NEON
    if machine not in ("x86_64", "amd64"):
        return _OTHER
    has = _cpu_flags()
    if not has:  # not Linux: what every processor of the last fifteen years has
        return CLASSES["sse"]
    found = _OTHER
    for kind in reversed(_X86):
        if not set(kind.needs) <= has:
            break
        found = kind
    return found


def current() -> Processor:
    """Return the class that this process keeps to: the machine's, or the limit's.

    Raises:
      UserError: `KD_JAX_CPU` is no class, or one that the machine does not have.
    """
    limit = os.environ.get(VARIABLE, "")
    machine = detected()
    if not limit:
        return machine
    possible = [kind.name for kind in _X86 if set(kind.needs) <= _cpu_flags()] or [machine.name]
    if limit not in possible:
        raise UserError(
            f"{VARIABLE}={limit} is not possible on this machine, whose class is {machine.name}: "
            f"expected {' or '.join(possible)}, or nothing"
        )
    return CLASSES[limit]


def apply_limit() -> None:
    """Keep XLA, and oneDNN inside it, to the limit: they read the environment when they start.

    Does nothing without a limit, or where the limit is wrong, which `current` says.
    """
    if not os.environ.get(VARIABLE):  # at every start: nothing is read without need
        return
    try:
        kind = current()
    except UserError:
        return
    if kind is detected() or not kind.xla_isa:
        return
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", kind.onednn_isa)
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_max_isa" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_max_isa={kind.xla_isa}".strip()


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> str:
    """Return the class, and whether it is the machine's own, for people."""
    kind = current()
    if kind is detected():
        return kind.name
    return f"{kind.name} ({detected().name} limited by {VARIABLE})"


def model() -> str | None:
    """Return the name that the maker gives the processor, where Linux tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", _CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None


def cache_key() -> str:
    """Return what tells apart the programs that XLA compiles for two machines: a part of a path.

    XLA uses all that a processor has, which within a class differs.
    """
    flags = " ".join(sorted(_cpu_flags())) or platform.processor()
    return f"{current().name}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """Return what the processor can do, as Linux says it; empty elsewhere."""
    try:
        text = _CPU_INFO.read_text()
    except OSError:
        return frozenset()
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(set.intersection(*(set(line.split()) for line in lines)) if lines else ())
