"""2-D convolution with PyTorch's explicit symmetric padding, in the form that is fast here.

The mathematics are those of `lax.conv_general_dilated`, which is always used on GPU and TPU. XLA's
CPU backend is slow on depthwise, 1x1, few-channel and tiny-map convolutions, so on CPU these become
multiply-adds, matrix products or compiled passes. This file says which forms can compute a
convolution; `forms` says which of them a class of processors takes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.kernels import depthwise, forms, lowering, plain, stem, winograd
from kd_jax.kernels.windows import Padding, same_padding, windows, without_idle_taps

_FEW_CHANNELS = 16  # 3x3 convolutions with at most this many input channels are a kind of layer


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
        return plain.conv2d(x, kernel, stride, same_padding(kernel), groups)
    kind, candidates = _candidates(x, kernel, stride, groups)
    return candidates[forms.choose(kind, candidates) if kind else forms.PLAIN]()


def _candidates(
    x: jax.Array, kernel: jax.Array, stride: int, groups: int
) -> tuple[str, dict[str, Callable[[], jax.Array]]]:
    """Return the kind of a convolution on CPU, and the forms that can compute it.

    The kind is empty where only the plain form can.
    """
    whole_kernel = kernel
    kernel, padding = without_idle_taps(x, kernel, stride)
    channels_in, channels_out = x.shape[-1], kernel.shape[-1]
    only_plain = {forms.PLAIN: lambda: plain.conv2d(x, kernel, stride, padding, groups)}
    if groups > 1:
        if not groups == channels_in == channels_out:
            return "", only_plain
        candidates = only_plain | {
            forms.SHIFTED: lambda: depthwise.conv2d(x, kernel, stride, padding, False),
        }
        if depthwise.suits(x, kernel):
            candidates[forms.COMPILED] = lambda: depthwise.conv2d(x, kernel, stride, padding, True)
        return forms.DEPTHWISE, candidates
    if kernel.shape[:2] == (1, 1):
        return forms.POINTWISE, only_plain | {forms.MATMUL: lambda: _pointwise(x, kernel, stride)}
    if channels_in <= 4 or x.shape[1] < kernel.shape[0]:
        candidates = only_plain | {forms.PATCHES: lambda: _of_patches(x, kernel, stride, padding)}
        if channels_in > 4:
            return forms.SMALL_MAP, candidates
        if not lowering.is_frozen():
            return forms.STEM, candidates
        if stem.suits(x, whole_kernel):
            candidates[forms.COMPILED] = lambda: stem.conv2d(x, whole_kernel, stride)
        return forms.FROZEN_STEM, candidates
    candidates = dict(only_plain)
    if lowering.is_frozen() and stride == 1:
        if winograd.suits_tiles(x, kernel):
            candidates[forms.COMPILED] = lambda: winograd.in_tiles(x, kernel)
        if winograd.suits_width(x, kernel):
            candidates[forms.ALONG_WIDTH] = lambda: winograd.along_width(x, kernel)
    if len(candidates) == 1:
        return "", candidates
    narrow = channels_in <= _FEW_CHANNELS
    return forms.FROZEN_3X3_NARROW if narrow else forms.FROZEN_3X3, candidates


def _pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return a 1x1 convolution as a matrix product."""
    x = x[:, ::stride, ::stride]
    # Flat, because otherwise the kernel's gradient contracts three axes at once, which is slow.
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:3], kernel.shape[-1])


def _of_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Return a convolution as the matrix product of the patches of `x` and the kernel (im2col)."""
    kernel_size = (kernel.shape[0], kernel.shape[1])
    patches = jnp.concatenate(windows(x, kernel_size, stride, padding), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])
