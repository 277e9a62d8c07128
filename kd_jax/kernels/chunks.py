"""Run a frozen network over a batch a few images at a time, so that its maps stay in the cache.

In eval mode the images of a batch do not depend on one another. On CPU a layer's maps for a whole
batch go to memory and back; for a few images they stay in the cache. That alone made ResNet44 1.4
times, VGG11 1.8 times and MobileNetV2 x0_75 3.4 times faster forward (2 cores, batch 512, see
docs/performance.md). But weights go through the cache once a chunk: so there are as many images
in one as make their maps twice as large as the weights, where no map is too large for the cache
then. The student's training step cannot do this: batch norm ties its images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.kernels import jaxprs, lowering

# Measured best together on the study's teachers and students, forward on one core.
_MOST_BYTES = 8 << 20  # of the largest map of all images in a chunk
_FEWEST = 16  # images, unless they are that large
_REUSE = 2  # times as many bytes of maps as of the weights that go through the cache with them
_PROBE = 1009  # images that a network is traced with: a size that no kernel has


def in_chunks(forward: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Return `forward(images)`; on CPU, computed a few images at a time.

    Args:
      forward: maps images `[n, H, W, C]` to `[n, ...]`, each by itself.
      images: `[n, H, W, C]`.
    """
    count = len(images)
    if lowering.current() != "cpu" or count == 1:
        return forward(images)
    size = min(count, _images_of_chunk(forward, images))
    chunks = -(-count // size)
    if chunks == 1:
        return forward(images)
    size = -(-count // chunks)
    padding = [(0, chunks * size - count)] + [(0, 0)] * (images.ndim - 1)
    chunked = jnp.pad(images, padding).reshape(chunks, size, *images.shape[1:])
    results = jax.lax.map(forward, chunked)
    return results.reshape(chunks * size, *results.shape[2:])[:count]


def _images_of_chunk(forward: Callable[[jax.Array], jax.Array], images: jax.Array) -> int:
    """Return a power of two, as batches are: then chunks come out even."""
    probe = jax.ShapeDtypeStruct((_PROBE, *images.shape[1:]), images.dtype)
    traced = jax.make_jaxpr(forward)(probe)
    largest, maps = (size // _PROBE for size in _map_bytes(traced.jaxpr))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in traced.consts)
    wanted, most = max(_FEWEST, _REUSE * weights // maps), max(1, _MOST_BYTES // largest)
    return min(1 << (wanted - 1).bit_length(), 1 << (most.bit_length() - 1))


def _map_bytes(jaxpr: Any) -> tuple[int, int]:
    """Return the bytes of the largest value of `_PROBE` images that a program computes.

    And of all that its convolutions and matrix products compute of them.
    """
    largest = products = _PROBE
    for equation, _ in jaxprs.equations(jaxpr):
        for value in equation.outvars:
            if not value.aval.shape or value.aval.shape[0] % _PROBE:
                continue  # made of weights alone
            size = value.aval.size * value.aval.dtype.itemsize
            largest = max(largest, size)
            if equation.primitive.name in ("conv_general_dilated", "dot_general", "ffi_call"):
                products += size
    return largest, products
