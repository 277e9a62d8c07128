"""The network as a StableHLO program, serialised by `jax.export`, for any batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from kd_jax.export import function
from kd_jax.export.source import Source

PLATFORMS = ("cpu", "cuda", "tpu")


def content(source: Source, outputs: str) -> bytes:
    """Return the serialised program.

    Args:
      source: the network.
      outputs: `logits` or `probabilities`.
    """
    call = function.make(source.network, source.variables, outputs)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *source.card.image_shape), jnp.uint8)
    program = jax.export.export(jax.jit(call), platforms=PLATFORMS)(images)
    return bytes(program.serialize())


def runner(path: Path, source: Source, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the outputs of the program in a file.

    Args:
      path: of the file.
      source: not used.
      threads: not used: those of XLA.
    """
    del source, threads
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    return function.compiled(program.call)
