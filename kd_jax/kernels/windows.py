"""Padding of convolutions, and the shifted views of a map that the taps of a kernel see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros above and below, left and right
NO_PADDING: Padding = ((0, 0), (0, 0))


def same_padding(kernel: jax.Array) -> Padding:
    """Return the symmetric padding `(k - 1) // 2` of the PyTorch references."""
    vertical, horizontal = (kernel.shape[0] - 1) // 2, (kernel.shape[1] - 1) // 2
    return (vertical, vertical), (horizontal, horizontal)


def without_idle_taps(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Padding]:
    """Return the part of the kernel that ever meets a pixel, and the padding that it needs.

    On a map smaller than the kernel the outer taps meet only padding: of a 5x5 kernel 9 taps
    matter on a 2x2 map, and one on a 1x1 map. The whole kernel has `same_padding`.
    """
    padding = []
    for axis in (0, 1):
        size, taps = x.shape[1 + axis], kernel.shape[axis]
        before = (taps - 1) // 2
        last = (-(-size // stride) - 1) * stride  # centre of the last output's window
        low = max(0, before - last)
        high = min(taps, before + size)
        kernel = lax.slice_in_dim(kernel, low, high, axis=axis)
        padding.append((before - low, max(0, last + high - before - size)))
    return kernel, (padding[0], padding[1])


def windows(
    x: jax.Array, kernel_size: tuple[int, int], stride: int, padding: Padding
) -> list[jax.Array]:
    """Return, for each tap in the order of the kernel, the view of the padded `x` that it sees.

    Args:
      x: `[batch, height, width, channels]`.
      kernel_size: rows and columns of taps.
      stride: in both directions.
      padding: of `x`.

    Returns:
      Arrays `[batch, out_height, out_width, channels]`, one for each tap.
    """
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
