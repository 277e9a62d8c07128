"""Depthwise convolutions in compiled passes over the maps, and their gradients, on CPU.

XLA's loops pad by copying, spread the gradient of a strided convolution over zeros, and keep the
sums of the kernel's gradient in memory. `native` reads every number once. Same sums up to their
order.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.kernels import native

Padding = tuple[tuple[int, int], tuple[int, int]]
_MOST_TAPS = 25


def suits(x: jax.Array, kernel: jax.Array) -> bool:
    """Tell whether it can be done here."""
    return (
        x.dtype == kernel.dtype == jnp.float32
        and x.shape[-1] % native.LANES == 0
        and kernel.shape[0] * kernel.shape[1] <= _MOST_TAPS
        and native.target(native.DEPTHWISE) is not None
    )


def forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve every channel with its own kernel.

    Args:
      x: float32 `[n, H, W, channels]`.
      kernel: float32 `[kh, kw, 1, channels]`.
      stride: in both directions.
      padding: zeros above and below, before and after.

    Returns:
      float32 `[n, H', W', channels]`.
    """
    (above, below), (before, after) = padding
    height = (x.shape[1] + above + below - kernel.shape[0]) // stride + 1
    width = (x.shape[2] + before + after - kernel.shape[1]) // stride + 1
    shape = (len(x), height, width, x.shape[3])
    return _call(native.DEPTHWISE, shape, x, _flat(kernel), stride, padding)


def input_grad(
    grad: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: Padding
) -> jax.Array:
    """Return the gradient of the input, of a given shape, from that of the output."""
    kind = native.DEPTHWISE_INPUT_GRADIENT
    return _call(kind, shape, grad, _flat(kernel), stride, padding)


def kernel_grad(
    x: jax.Array, grad: jax.Array, shape: tuple[int, ...], stride: int, padding: Padding
) -> jax.Array:
    """Return the gradient of the kernel, of a given shape, from the input and the output's."""
    flat = (shape[0], shape[1], shape[3])
    kind = native.DEPTHWISE_KERNEL_GRADIENT
    return _call(kind, flat, x, grad, stride, padding).reshape(shape)


def _flat(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(kernel.shape[0], kernel.shape[1], kernel.shape[3])


def _call(
    symbol: str, shape: tuple[int, ...], a: Any, b: Any, stride: int, padding: Padding
) -> jax.Array:
    (above, _), (before, _) = padding
    return native.call(symbol, shape, a, b, stride=stride, above=above, before=before)
