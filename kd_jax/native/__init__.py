"""Compiled code for CPUs: what XLA's CPU backend has no fast form of.

C++ compiled by the machine's own compiler when it is first needed, kept under a name that says what
it was made of. Without a compiler everything works, more slowly: callers ask for the
target and have another way when it is None.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import caches
from kd_jax.console import logger

_HERE = Path(__file__).parent
# Names in the sources.
WINOGRAD, INVERTED_RESIDUAL, STEM = "KdJaxWinograd", "KdJaxInvertedResidual", "KdJaxStem"
DEPTHWISE = "KdJaxDepthwise"
DEPTHWISE_INPUT_GRADIENT = "KdJaxDepthwiseInputGradient"
DEPTHWISE_KERNEL_GRADIENT = "KdJaxDepthwiseKernelGradient"
NORM_STATISTICS, NORM_GRADIENT = "KdJaxNormStatistics", "KdJaxNormGradient"
LANES = 8  # channels that the sources take at a time, at least; Winograd's takes twice as many
_COMPILERS = ("c++", "g++", "clang++")
# The machine's widest vectors, and products added without rounding in between; nothing that lets
# a compiler reorder sums, so that two compilations of one source give the same numbers. The last
# but three: tuned for some processors GCC rounds products in sums of few rows and not in those of
# many, and a pixel's bits would depend on how many are worked on beside it. (Clang ignores it.)
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "--param=avoid-fma-max-bits=0",
    "-fPIC", "-shared", "-w",
)  # fmt: skip
_COMPILE_SECONDS = 120.0


@functools.cache
def target(symbol: str) -> str | None:
    """Return the name under which XLA knows a compiled layer; None where there is none.

    `KD_JAX_NATIVE=0` turns all of them off.
    """
    library = _library()
    if library is None:
        return None
    name = f"kd_jax_{library[0]}_{symbol}"
    jax.ffi.register_ffi_target(
        name, jax.ffi.pycapsule(getattr(library[1], symbol)), platform="cpu"
    )
    return name


def call(symbol: str, shape: tuple[int, ...], *arguments: Any, **numbers: int) -> jax.Array:
    """Call a compiled layer whose `target` there is.

    Args:
      symbol: of the layer.
      shape: of its result, float32.
      arguments: float32 arrays.
      numbers: its attributes.
    """
    name = target(symbol)
    assert name is not None
    result = jax.ShapeDtypeStruct(shape, np.float32)
    run = jax.ffi.ffi_call(name, result, vmap_method="sequential")
    return run(*arguments, **{key: np.int64(value) for key, value in numbers.items()})


@functools.cache
def _library() -> tuple[str, ctypes.CDLL] | None:
    """Return the compiled sources with what tells them from others, compiled now if need be."""
    if os.environ.get("KD_JAX_NATIVE") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        logger.info("no C++ compiler here: networks take their slower form")
        return None
    try:
        digest = _digest(compiler)
        path = caches.directory("native") / f"layers-{digest}.so"
        if not path.exists():
            _compile(compiler, path)
        return digest, ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        logger.info(
            "%s cannot be compiled here (%s): networks take their slower form",
            _HERE,
            " ".join(str(error).split())[:200],
        )
        return None


def _compiler() -> str | None:
    """Return the path of `$CXX`, or of the first compiler there is."""
    chosen = os.environ.get("CXX")
    found = (shutil.which(name) for name in ((chosen,) if chosen else _COMPILERS))
    return next((path for path in found if path), None)


def _digest(compiler: str) -> str:
    """Return what tells apart two results of a compilation: source, compiler, flags, processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in sorted([*_HERE.glob("*.cc"), *_HERE.glob("*.h")])]
    made_of = [*texts, version, " ".join(_FLAGS).encode(), _processor()]
    made_of += [jax.__version__.encode(), sys.platform.encode()]
    return hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]


def _processor() -> bytes:
    """Return what a program for this very processor depends on: a home may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features"))}))


def _compile(compiler: str, path: Path) -> None:
    """Compile to a name of its own, then rename: processes that start together do not meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / path.name
        sources = map(str, sorted(_HERE.glob("*.cc")))
        subprocess.run(
            [compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", *sources, "-o", str(made)],
            capture_output=True,
            check=True,
            timeout=_COMPILE_SECONDS,
        )
        os.replace(made, path)
