"""The first convolution of a frozen network as one compiled pass, on CPU.

XLA copies the patches of an image of three channels to memory, some floats at a time, and that
takes longer than the matrix product that they are for. `native` lays them out in the first-level
cache. Same sums up to their order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.kernels import native

_MOST_CHANNELS = 4  # of images; more fill vectors by themselves


def suits(x: jax.Array, kernel: jax.Array) -> bool:
    """Tell whether `conv2d` can do it."""
    return (
        kernel.shape[2] <= _MOST_CHANNELS
        and kernel.shape[0] == kernel.shape[1]
        and kernel.shape[0] % 2 == 1
        and kernel.shape[3] % native.LANES == 0
        and x.dtype == kernel.dtype == jnp.float32
        and native.target(native.STEM) is not None
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
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


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv2d(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As of the ordinary convolution: whoever asks a frozen network for it wants no surprise."""

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        border = (kernel.shape[0] - 1) // 2
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), ((border, border),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    return jax.vjp(plain, *saved)[1](grad)


conv2d.defvjp(_forward, _backward)
