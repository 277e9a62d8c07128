"""The first convolution of a frozen network as one compiled pass, on CPU.

XLA copies the patches of an image of three channels to memory, a few floats at a time, and that
takes longer than the matrix product that follows. The compiled pass (`native/stem.h`) lays the
patches out in the first-level cache. Results differ only by the order of the sums.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.kernels import native, plain
from kd_jax.kernels.windows import same_padding

_MOST_CHANNELS = 4  # of images; more channels fill vectors without this pass


def suits(x: jax.Array, kernel: jax.Array) -> bool:
    """Tell whether `conv2d` can compute this convolution."""
    return (
        kernel.shape[2] <= _MOST_CHANNELS
        and kernel.shape[0] == kernel.shape[1]
        and kernel.shape[0] % 2 == 1
        and kernel.shape[3] % native.LANES == 0
        and x.dtype == kernel.dtype == jnp.float32
        and native.target(native.STEM) is not None
    )


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return plain.conv2d(x, kernel, stride, same_padding(kernel))


@plain.with_plain_gradient(_plain, nondiff_argnums=(2,))
def conv2d(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve with padding `(k - 1) // 2`.

    Args:
      x: float32 `[n, H, W, channels_in]`.
      kernel: float32 `[k, k, channels_in, channels_out]`, k odd.
      stride: in both directions.

    Returns:
      float32 `[n, ceil(H / stride), ceil(W / stride), channels_out]`.
    """
    count, height, width, _ = x.shape
    shape = (count, -(-height // stride), -(-width // stride), kernel.shape[3])
    return native.call(native.STEM, shape, x, kernel, stride=stride)
