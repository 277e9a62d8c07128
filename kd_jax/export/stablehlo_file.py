"""The network as a StableHLO program, serialised by `jax.export`, for any batch."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp

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
    call.__name__ = outputs  # which the file keeps: all that it says of itself
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *source.card.image_shape), jnp.uint8)
    program = jax.export.export(jax.jit(call), platforms=PLATFORMS)(images)
    return bytes(program.serialize())
