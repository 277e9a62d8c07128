"""Depthwise convolutions on CPU and their gradients: compiled passes, or shifted multiply-adds.

The compiled passes (`native/depthwise.h`) read every number once. Loops that XLA makes copy the
input to pad it, spread the gradient of a strided convolution over zeros, and keep the sums of the
kernel's gradient in memory. Without a compiler the same sums are made of shifted views, which XLA
fuses into one loop. Results differ only by the order of the sums.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.kernels import native
from kd_jax.kernels.windows import NO_PADDING, Padding, windows

_MOST_TAPS = 25
_CACHE_BYTES = 700_000  # about a core's second-level cache; 300 to 700 kB were measured as best


def suits(x: jax.Array, kernel: jax.Array) -> bool:
    """Tell whether the compiled passes can compute this convolution."""
    return (
        x.dtype == kernel.dtype == jnp.float32
        and x.shape[-1] % native.LANES == 0
        and kernel.shape[0] * kernel.shape[1] <= _MOST_TAPS
        and native.target(native.DEPTHWISE) is not None
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, compiled: bool
) -> jax.Array:
    """Convolve every channel with its own kernel.

    Args:
      x: `[n, H, W, channels]`; float32 for the compiled pass.
      kernel: `[kh, kw, 1, channels]`, of the same dtype.
      stride: in both directions.
      padding: zeros above and below, left and right.
      compiled: whether to use the compiled passes, in the gradients too; see `suits`.

    Returns:
      `[n, H', W', channels]`.
    """
    return (_compiled if compiled else _shifted)(x, kernel, stride, padding)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, compiled: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv2d(x, kernel, stride, padding, compiled), (x, kernel)


def _backward(
    stride: int,
    padding: Padding,
    compiled: bool,
    saved: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    gradients = _compiled_gradients if compiled else _shifted_gradients
    return gradients(*saved, grad, stride, padding)


conv2d.defvjp(_forward, _backward)


def _compiled(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    (above, below), (before, after) = padding
    height = (x.shape[1] + above + below - kernel.shape[0]) // stride + 1
    width = (x.shape[2] + before + after - kernel.shape[1]) // stride + 1
    shape = (len(x), height, width, x.shape[3])
    return _call(native.DEPTHWISE, shape, x, _flat(kernel), stride, padding)


def _compiled_gradients(
    x: jax.Array, kernel: jax.Array, grad: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of the input and of the kernel from that of the output."""
    flat = _flat(kernel)
    of_x = _call(native.DEPTHWISE_INPUT_GRADIENT, x.shape, grad, flat, stride, padding)
    of_kernel = _call(native.DEPTHWISE_KERNEL_GRADIENT, flat.shape, x, grad, stride, padding)
    return of_x, of_kernel.reshape(kernel.shape)


def _flat(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(kernel.shape[0], kernel.shape[1], kernel.shape[3])


def _call(
    symbol: str, shape: tuple[int, ...], a: Any, b: Any, stride: int, padding: Padding
) -> jax.Array:
    (above, _), (before, _) = padding
    return native.call(symbol, shape, a, b, stride=stride, above=above, before=before)


def _shifted(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    kh, kw, _, channels = kernel.shape
    views = windows(x, (kh, kw), stride, padding)
    taps = kernel.reshape(-1, channels)
    return functools.reduce(
        operator.add, (view * tap for view, tap in zip(views, taps, strict=True))
    )


def _shifted_gradients(
    x: jax.Array, kernel: jax.Array, grad: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of the input and of the kernel from that of the output.

    The gradient of the input is the same shifted sum with the kernel reversed, over the output's
    gradient spread out on the grid of the input.
    """
    kh, kw = kernel.shape[:2]
    of_kernel = _shifted_kernel_gradient(x, grad, (kh, kw), stride, padding)
    spread = []
    for axis, taps in ((0, kh), (1, kw)):
        span = (grad.shape[1 + axis] - 1) * stride + 1
        before = taps - 1 - padding[axis][0]
        spread.append((before, x.shape[1 + axis] + taps - 1 - span - before, stride - 1))
    grad = lax.pad(grad, jnp.zeros((), grad.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    of_x = conv2d(grad, kernel[::-1, ::-1], 1, NO_PADDING, False)
    return of_x, of_kernel.reshape(kernel.shape)


def _shifted_kernel_gradient(
    x: jax.Array, grad: jax.Array, kernel_size: tuple[int, int], stride: int, padding: Padding
) -> jax.Array:
    """Return the gradient of every tap, `[taps, channels]`, in one pass over the maps.

    The loop runs over images and strips of rows. Each tap has one running sum
    `[rows, width, channels]`, so that the loop is plain vector arithmetic in the cache. The
    reduction over three axes at once that XLA makes of it was 1.3 to 6.8 times slower on the shapes
    of MobileNetV2.
    """
    kh, kw = kernel_size
    images, height, width, channels = grad.shape
    rows = _rows_of_strip(height, width * channels * kh * kw * grad.dtype.itemsize)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    strip = (1, (rows - 1) * stride + kh, *x.shape[2:])
    strips = height // rows

    def add_strip(n: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        image, row = n // strips, n % strips * rows
        of_x = lax.dynamic_slice(x, (image, row * stride, 0, 0), strip)
        of_grad = lax.dynamic_slice(grad, (image, row, 0, 0), (1, rows, width, channels))
        views = windows(of_x, kernel_size, stride, NO_PADDING)
        return tuple(
            total + view[:, :rows, :width] * of_grad
            for total, view in zip(sums, views, strict=True)
        )

    zeros = jnp.zeros((1, rows, width, channels), jnp.float32)
    sums = lax.fori_loop(0, images * strips, add_strip, (zeros,) * (kh * kw))
    return jnp.stack([jnp.sum(total, axis=(0, 1, 2)) for total in sums]).astype(grad.dtype)


def _rows_of_strip(height: int, row_bytes: int) -> int:
    """Return the most rows, a divisor of `height`, whose sums stay in the cache of one core."""
    fits = [n for n in range(1, height + 1) if height % n == 0 and n * row_bytes <= _CACHE_BYTES]
    return max(fits, default=1)
