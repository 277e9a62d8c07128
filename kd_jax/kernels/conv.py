"""2-D convolution with PyTorch's explicit symmetric padding, in the form that is fast here.

Mathematics are those of `lax.conv_general_dilated`, which GPU and TPU always take. XLA's CPU
backend is slow on depthwise, 1x1, few-channel and tiny-map convolutions, so on CPU these become
multiply-adds, matrix products or compiled passes. This file says which forms a convolution has;
`forms` says which of them a class of processors takes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.kernels import depthwise, forms, lowering, stem, winograd
from kd_jax.kernels.depthwise import Padding

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 16  # of a 3x3 convolution that is a kind of its own
_CACHE_BYTES = 700_000  # about a core's second-level cache; measured best from 300 to 700 kB


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    """Convolve with the symmetric explicit padding `(k - 1) // 2` of the PyTorch references.

    Args:
      x: `[batch, height, width, channels_in]`.
      kernel: `[kh, kw, channels_in / groups, channels_out]`, kh and kw odd.
      stride: in both directions.
      groups: 1, or `channels_in` for a depthwise convolution.

    Returns:
      `[batch, ceil(height / stride), ceil(width / stride), channels_out]`.
    """
    if lowering.current() == "plain":
        return _conv_plain(x, kernel, stride, _same_padding(kernel), groups)
    kind, ways = _ways(x, kernel, stride, groups)
    return ways[forms.choose(kind, ways) if kind else forms.PLAIN]()


def _ways(
    x: jax.Array, kernel: jax.Array, stride: int, groups: int
) -> tuple[str, dict[str, Callable[[], jax.Array]]]:
    """Return the kind of a convolution on CPU, and the forms that can compute it.

    The kind is empty where there is the plain form alone.
    """
    whole_kernel = kernel
    kernel, padding = _without_idle_taps(x, kernel, stride)
    channels_in, channels_out = x.shape[-1], kernel.shape[-1]
    plain = {forms.PLAIN: lambda: _conv_plain(x, kernel, stride, padding, groups)}
    if groups > 1:
        if not groups == channels_in == channels_out:
            return "", plain
        ways = plain | {
            forms.SHIFTED: lambda: _depthwise(x, kernel, stride, padding, False),
        }
        if depthwise.suits(x, kernel):
            ways[forms.COMPILED] = lambda: _depthwise(x, kernel, stride, padding, True)
        return forms.DEPTHWISE, ways
    if kernel.shape[:2] == (1, 1):
        return forms.POINTWISE, plain | {forms.MATMUL: lambda: _pointwise(x, kernel, stride)}
    if channels_in <= 4 or x.shape[1] < kernel.shape[0]:
        ways = plain | {forms.PATCHES: lambda: _of_patches(x, kernel, stride, padding)}
        if channels_in > 4:
            return forms.SMALL_MAP, ways
        if not lowering.is_frozen():
            return forms.STEM, ways
        if stem.suits(x, whole_kernel):
            ways[forms.COMPILED] = lambda: stem.conv2d(x, whole_kernel, stride)
        return forms.FROZEN_STEM, ways
    ways = dict(plain)
    if lowering.is_frozen() and stride == 1:
        if winograd.suits_tiles(x, kernel):
            ways[forms.COMPILED] = lambda: winograd.in_tiles(x, kernel)
        if winograd.suits_width(x, kernel):
            ways[forms.ALONG_WIDTH] = lambda: winograd.along_width(x, kernel)
    if len(ways) == 1:
        return "", ways
    narrow = channels_in <= _FEW_CHANNELS
    return forms.FROZEN_3X3_NARROW if narrow else forms.FROZEN_3X3, ways


def _pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    x = x[:, ::stride, ::stride]
    # Flat, or the kernel's gradient contracts three axes at once, and slowly.
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:3], kernel.shape[-1])


def _of_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    patches = jnp.concatenate(
        _windows(x, (kernel.shape[0], kernel.shape[1]), stride, padding), axis=-1
    )
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _same_padding(kernel: jax.Array) -> Padding:
    ph, pw = (kernel.shape[0] - 1) // 2, (kernel.shape[1] - 1) // 2
    return (ph, ph), (pw, pw)


def _conv_plain(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def _without_idle_taps(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Padding]:
    """Return the part of the kernel that ever meets a pixel, and the padding that it needs.

    On a map smaller than the kernel the outer taps only ever see padding: of a 5x5 kernel on a
    2x2 map 9 taps count, on a 1x1 map one.
    """
    padding = []
    for axis in (0, 1):
        size, taps = x.shape[1 + axis], kernel.shape[axis]
        before = (taps - 1) // 2
        last = (-(-size // stride) - 1) * stride  # where the last output's window is centred
        low = max(0, before - last)
        high = min(taps, before + size)
        kernel = lax.slice_in_dim(kernel, low, high, axis=axis)
        padding.append((before - low, max(0, last + high - before - size)))
    return kernel, (padding[0], padding[1])


def _windows(
    x: jax.Array, kernel_size: tuple[int, int], stride: int, padding: Padding
) -> list[jax.Array]:
    """Return, for every tap in kernel order, the strided window of the padded `x` that it sees."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    last_row, last_column = (
        (size - taps) // stride * stride
        for size, taps in zip(x.shape[1:3], kernel_size, strict=True)
    )
    return [
        x[:, i : i + last_row + 1 : stride, j : j + last_column + 1 : stride]
        for i in range(kernel_size[0])
        for j in range(kernel_size[1])
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, compiled: bool
) -> jax.Array:
    """Depthwise convolution, compiled or as shifted multiply-adds, which XLA fuses into a loop."""
    if compiled:
        return depthwise.forward(x, kernel, stride, padding)
    kh, kw, _, channels = kernel.shape
    windows = _windows(x, (kh, kw), stride, padding)
    taps = kernel.reshape(-1, channels)
    return functools.reduce(
        operator.add, (window * tap for window, tap in zip(windows, taps, strict=True))
    )


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, compiled: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, stride, padding, compiled), (x, kernel)


def _depthwise_backward(
    stride: int,
    padding: Padding,
    compiled: bool,
    saved: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if compiled:
        return (
            depthwise.input_grad(grad, kernel, x.shape, stride, padding),
            depthwise.kernel_grad(x, grad, kernel.shape, stride, padding),
        )
    kh, kw = kernel.shape[:2]
    kernel_grad = _depthwise_kernel_grad(x, grad, (kh, kw), stride, padding).reshape(kernel.shape)
    # The input gradient is the same shifted sum with the kernel flipped, over the gradient laid
    # out on the input's grid.
    around = []
    for axis, taps in ((0, kh), (1, kw)):
        span = (grad.shape[1 + axis] - 1) * stride + 1
        before = taps - 1 - padding[axis][0]
        around.append((before, x.shape[1 + axis] + taps - 1 - span - before, stride - 1))
    grad = lax.pad(grad, jnp.zeros((), grad.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    return _depthwise(grad, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)), False), kernel_grad


def _depthwise_kernel_grad(
    x: jax.Array, grad: jax.Array, kernel_size: tuple[int, int], stride: int, padding: Padding
) -> jax.Array:
    """Return the gradient of every tap, `[taps, channels]`, in one pass over the maps.

    The sum runs over images and strips of rows, into one running sum a tap that keeps rows, columns
    and channels: plain vector arithmetic in the cache. Left to XLA, a reduction over three axes at
    once was 1.3 to 6.8 times slower on the shapes of MobileNetV2.
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
        windows = _windows(of_x, kernel_size, stride, ((0, 0), (0, 0)))
        return tuple(
            total + window[:, :rows, :width] * of_grad
            for total, window in zip(sums, windows, strict=True)
        )

    zeros = jnp.zeros((1, rows, width, channels), jnp.float32)
    sums = lax.fori_loop(0, images * strips, add_strip, (zeros,) * (kh * kw))
    return jnp.stack([jnp.sum(total, axis=(0, 1, 2)) for total in sums]).astype(grad.dtype)


def _rows_of_strip(height: int, row_bytes: int) -> int:
    """Return the most rows, a divisor of `height`, whose sums stay in the cache of one core."""
    fits = [n for n in range(1, height + 1) if height % n == 0 and n * row_bytes <= _CACHE_BYTES]
    return max(fits, default=1)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
