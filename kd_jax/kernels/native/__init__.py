"""Layers compiled from C++ for CPU, for which XLA's CPU backend has no fast form.

The library is compiled by the machine's compiler when it is first needed, and cached under a digest
of its inputs. Without a compiler everything works, but more slowly: callers ask for the `target` of
a layer and take another form if it is None.
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
# Symbols in the library, see bindings.cc.
WINOGRAD, INVERTED_RESIDUAL, STEM = "KdJaxWinograd", "KdJaxInvertedResidual", "KdJaxStem"
DEPTHWISE = "KdJaxDepthwise"
DEPTHWISE_INPUT_GRADIENT = "KdJaxDepthwiseInputGradient"
DEPTHWISE_KERNEL_GRADIENT = "KdJaxDepthwiseKernelGradient"
NORM_STATISTICS, NORM_GRADIENT = "KdJaxNormStatistics", "KdJaxNormGradient"
LANES = 8  # numbers of channels must be multiples of this, on every processor
_COMPILERS = ("c++", "g++", "clang++")
# Products are added without intermediate rounding (fused multiply-add), and the compiler may not
# reorder sums, so that two compilations of one source give the same numbers. `avoid-fma-max-bits`
# is for GCC: tuned for some processors, it rounds products in sums of few rows but not in those of
# many rows, and the bits of a pixel would depend on the number of pixels beside it. Clang ignores
# this parameter.
_FLAGS = (
    "-std=c++20", "-O3", "-ffp-contract=fast", "--param=avoid-fma-max-bits=0",
    "-fPIC", "-shared", "-w",
)  # fmt: skip
_COMPILE_SECONDS = 600.0  # 10 s on a free core; a busy machine must not cost a run its passes
_DIGEST_BYTES = hashlib.sha256().digest_size


@functools.cache
def target(symbol: str) -> str | None:
    """Return the name of a compiled layer in XLA, after registering it; None if it is not there.

    `KD_JAX_NATIVE=0` turns all compiled layers off.
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
    """Return a digest of the sources, compiler and flags of the library; None without a library."""
    library = _library()
    return library[0] if library else None


def call(symbol: str, shape: tuple[int, ...], *arguments: Any, **numbers: int) -> jax.Array:
    """Call a compiled layer; its `target` must not be None.

    Args:
      symbol: of the layer.
      shape: of the result, which is float32.
      arguments: float32 arrays.
      numbers: integer attributes of the layer.
    """
    name = target(symbol)
    assert name is not None
    result = jax.ShapeDtypeStruct(shape, np.float32)
    run = jax.ffi.ffi_call(name, result, vmap_method="sequential")
    return run(*arguments, **{key: np.int64(value) for key, value in numbers.items()})


@functools.cache
def _library() -> tuple[str, ctypes.CDLL] | None:
    """Return the digest and the library, compiled now if it is not cached; None without one."""
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
        for _ in range(2):  # another process may empty the directory, see `_make_private`
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
    """Return the path of `$CXX` or of the first compiler that is installed; None without one."""
    chosen = os.environ.get("CXX")
    paths = (shutil.which(name) for name in ((chosen,) if chosen else _COMPILERS))
    return next((path for path in paths if path), None)


def _digest(compiler: str) -> str:
    """Return a digest of the inputs of the compilation: sources, compiler, flags, JAX, system."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in sorted([*_HERE.glob("*.cc"), *_HERE.glob("*.h")])]
    inputs = [*texts, version, " ".join(_flags()).encode()]
    inputs += [jax.__version__.encode(), sys.platform.encode()]
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, *processor.current().flags)


def _compile(compiler: str, path: Path) -> None:
    """Compile the library to a temporary name and rename it, safe with concurrent processes.

    The sha256 of the file is appended to it; loaders of libraries ignore what follows their data.

    Raises:
      OSError, subprocess.SubprocessError: the compiler failed, or took too long.
    """
    with caches.workspace(path.parent) as directory:
        temporary = directory / path.name
        sources = map(str, sorted(_HERE.glob("*.cc")))
        subprocess.run(
            [compiler, *_flags(), f"-I{jax.ffi.include_dir()}", *sources, "-o", str(temporary)],
            capture_output=True,
            check=True,
            timeout=_COMPILE_SECONDS,
        )
        with open(temporary, "r+b") as file:
            content = file.read()
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o500)
        os.replace(temporary, path)


def _make_private(directory: Path) -> None:
    """Make a directory that only its owner may write to.

    If others could write to an existing one, its libraries are removed, as they may not be ours.

    Raises:
      OSError: it cannot be made, or it belongs to another user, who could put any library there.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = directory.stat()
    if status.st_uid != os.geteuid():
        raise OSError(f"{directory} belongs to another user: set KD_JAX_CACHE_DIR to your own")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        logger.warning("%s could be written to by others: its libraries are made again", directory)
        # Listed before chmod, so that what another process compiles after it is kept.
        libraries = list(directory.glob("*.so"))
        directory.chmod(0o700)
        for library in libraries:
            library.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Tell whether a library exists, is undamaged, and can be changed by its owner only."""
    try:
        status, content = path.stat(), path.read_bytes()
    except FileNotFoundError:
        return False
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    body, stored_digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return hashlib.sha256(body).digest() == stored_digest
