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
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.runtime import caches, processor
from kd_jax.runtime.console import logger

_HERE = Path(__file__).parent
# Names in the sources.
WINOGRAD, INVERTED_RESIDUAL, STEM = "KdJaxWinograd", "KdJaxInvertedResidual", "KdJaxStem"
DEPTHWISE = "KdJaxDepthwise"
DEPTHWISE_INPUT_GRADIENT = "KdJaxDepthwiseInputGradient"
DEPTHWISE_KERNEL_GRADIENT = "KdJaxDepthwiseKernelGradient"
NORM_STATISTICS, NORM_GRADIENT = "KdJaxNormStatistics", "KdJaxNormGradient"
LANES = 8  # channels must be a multiple of it, on every processor
_COMPILERS = ("c++", "g++", "clang++")
# Products are added without rounding in between, and nothing lets a compiler reorder sums, so that
# two compilations of one source give the same numbers. The last but three: tuned for some
# processors GCC rounds products in sums of few rows and not in those of many, and a pixel's bits
# would depend on how many are worked on beside it. (Clang ignores it.)
_FLAGS = (
    "-std=c++20", "-O3", "-ffp-contract=fast", "--param=avoid-fma-max-bits=0",
    "-fPIC", "-shared", "-w",
)  # fmt: skip
_COMPILE_SECONDS = 120.0
_DIGEST_BYTES = hashlib.sha256().digest_size


@functools.cache
def target(symbol: str) -> str | None:
    """Return the name under which XLA knows a compiled layer; None where there is none.

    `KD_JAX_NATIVE=0` turns all of them off.
    """
    library = _library()
    if library is None:
        return None
    name = f"kd_jax_{library[0]}_{symbol}"
    try:
        function = getattr(library[1], symbol)
    except AttributeError:
        logger.info("%s is not in the compiled library: layers take another form", symbol)
        return None
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    return name


def digest() -> str | None:
    """Return what tells the compiled sources from others; None where nothing is compiled."""
    library = _library()
    return library[0] if library else None


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
    if os.environ.get("KD_JAX_NATIVE") == "0" or not processor.current().lanes:
        return None
    if not hasattr(os, "geteuid"):
        logger.info("compiled passes are not for this system: networks take their slower form")
        return None
    compiler = _compiler()
    if compiler is None:
        logger.info("no C++ compiler here: networks take their slower form")
        return None
    try:
        name = _digest(compiler)
        path = caches.directory("native") / f"layers-{name}.so"
        _make_private(path.parent)
        for _ in range(2):  # another process may find the directory open to others, and empty it
            if _is_whole(path):
                break
            _compile(compiler, path)
        return name, ctypes.CDLL(str(path))
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
    """Return what tells apart two results of a compilation: source, compiler, flags, system."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in sorted([*_HERE.glob("*.cc"), *_HERE.glob("*.h")])]
    made_of = [*texts, version, " ".join(_flags()).encode()]
    made_of += [jax.__version__.encode(), sys.platform.encode()]
    return hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, *processor.current().flags)


def _compile(compiler: str, path: Path) -> None:
    """Compile to a name of its own, then rename: processes that start together do not meet.

    The file ends with the sha256 of what is before, which loaders of libraries do not read.
    """
    with caches.workspace(path.parent) as directory:
        made = directory / path.name
        sources = map(str, sorted(_HERE.glob("*.cc")))
        subprocess.run(
            [compiler, *_flags(), f"-I{jax.ffi.include_dir()}", *sources, "-o", str(made)],
            capture_output=True,
            check=True,
            timeout=_COMPILE_SECONDS,
        )
        with open(made, "r+b") as file:
            content = file.read()
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        made.chmod(0o500)
        os.replace(made, path)


def _make_private(directory: Path) -> None:
    """Make a directory that its owner alone may write to; empty one that others could.

    Raises:
      OSError: it cannot be made, or belongs to somebody else, who could put anything there.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = directory.stat()
    if about.st_uid != os.geteuid():
        raise OSError(f"{directory} belongs to another user: set KD_JAX_CACHE_DIR to your own")
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        logger.warning("%s could be written to by others: its libraries are made again", directory)
        libraries = list(directory.glob("*.so"))  # and none that another process compiles now
        directory.chmod(0o700)
        for library in libraries:
            library.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Tell whether a library is there as it was compiled, and nobody else may change it."""
    try:
        about, content = path.stat(), path.read_bytes()
    except FileNotFoundError:
        return False
    if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    body, end = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return hashlib.sha256(body).digest() == end
