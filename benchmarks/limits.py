"""What keeps a benchmark's processes to a lower class of processors: `KD_JAX_CPU=avx2` or `sse`.

Every library reads its own variable when it starts, so all are in a process's environment before
it imports anything.
"""

from __future__ import annotations

import os

from kd_jax.runtime import processor

# ATen's kernels, and Inductor's vectors after them (avx2: 32 bytes; default: none, Inductor has no
# form of 16 bytes); MKL's products; OpenBLAS's, which are numpy's. MKL heeds the instructions on
# Intel's processors only; on others its AVX2 code is the widest, and COMPATIBLE is what keeps it to
# SSE (measured on a Zen 4 core: 97 GFLOP/s without, 38 with it).
_LIMITS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "sse": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}


def environment() -> dict[str, str]:
    """Return the variables that limit PyTorch, oneDNN, Inductor's compiler, MKL and numpy.

    Raises:
      UserError: `KD_JAX_CPU` is no class, or one that the machine does not have.
    """
    kind = processor.current()
    if not os.environ.get(processor.VARIABLE) or kind.name not in _LIMITS:
        return {}
    march = next(flag.removeprefix("-march=") for flag in kind.flags if flag.startswith("-march="))
    return _LIMITS[kind.name] | {
        "ONEDNN_MAX_CPU_ISA": kind.onednn_isa,
        "TORCHINDUCTOR_CPP_MARCH": march,
    }


def describe() -> str:
    """Return the class for a table: the machine's own, or the one it is limited to."""
    kind = processor.current()
    if kind is processor.detected():
        return f"a real {kind.name} machine"
    return (
        f"{processor.detected().name} machine limited to {kind.name} by "
        f"{processor.VARIABLE}={kind.name}"
    )
