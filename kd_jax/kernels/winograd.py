"""3x3 convolutions with fewer multiplications: Winograd's F(4, 3), along one axis or both.

Four outputs of a three-tap filter need twelve products. Computed from six sums of the inputs and
six sums of the taps, they need six. Along both axes, sixteen outputs need 36 products instead of
144; this form is written in C++ (`native/winograd.h`) and keeps the sums of some tiles in the
cache. The other form is compiled by XLA and transforms only the width; the three taps of the height
remain a convolution, so that there are few sums, each over whole rows. Both are exact in real
numbers, with a rounding error of 1e-5 of the largest value. They are for frozen networks on CPU,
where multiplications limit the speed.

Source: Winograd 1980; Lavin and Gray 2016, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.kernels import native, plain
from kd_jax.kernels.windows import NO_PADDING, same_padding
from kd_jax.runtime import processor

OUTPUTS = 4  # of a tile, along one axis
_TAPS = 3
# From the six inputs of a tile to six sums, from three taps to six sums, from six products to four
# outputs. They follow from interpolation at 0, 1, -1, 2, -2 and infinity.
_INPUT = np.array([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
], np.float64)  # fmt: skip
_KERNEL = np.array([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
], np.float64)  # fmt: skip
_OUTPUT = np.array([
    [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1],
], np.float64)  # fmt: skip
_FEW_CHANNELS = 16  # up to this many, concatenated rows and one matrix product are faster


def suits_tiles(x: jax.Array, kernel: jax.Array) -> bool:
    """Tell whether `in_tiles` can compute this convolution."""
    _, height, width, _ = x.shape
    return (
        kernel.shape[:2] == (3, 3)
        and height % OUTPUTS == width % OUTPUTS == 0
        and all(size % native.LANES == 0 for size in kernel.shape[2:])
        and x.dtype == kernel.dtype == jnp.float32
        and native.target(native.WINOGRAD) is not None
    )


def suits_width(x: jax.Array, kernel: jax.Array) -> bool:
    """Tell whether `along_width` can compute it; maps must be at least two tiles wide."""
    width = x.shape[2]
    return (
        kernel.shape[:2] == (3, 3)
        and width % OUTPUTS == 0
        and width >= 2 * OUTPUTS
        and x.dtype == jnp.float32
    )


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return plain.conv2d(x, kernel, 1, same_padding(kernel))


@plain.with_plain_gradient(_plain)
def in_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with stride 1 and a padding of 1, in 4x4 tiles: the compiled form.

    Args:
      x: float32 `[batch, height, width, channels_in]`, height and width multiples of `OUTPUTS`.
      kernel: float32 `[3, 3, channels_in, channels_out]`, channels multiples of `native.LANES`.

    Returns:
      float32 `[batch, height, width, channels_out]`.
    """
    channels_out = kernel.shape[3]
    sums = np.kron(_KERNEL, _KERNEL).astype(np.float32) @ _panels(kernel)
    return native.call(native.WINOGRAD, (*x.shape[:3], channels_out), x, sums)


def _panels(kernel: jax.Array) -> jax.Array:
    """Return the taps `[9, channels_in * channels_out]` in the order of `Pack` in C++.

    The kernel is reordered, not its sums. So the matrix product is the last operation on the
    weights, and XLA moves all of them out of a loop over chunks of images.
    """
    channels_in, channels_out = kernel.shape[2:]
    taps = kernel.reshape(_TAPS**2, channels_in, channels_out)
    lanes = processor.current().lanes
    panels, column = [], 0
    for width in (2 * lanes, lanes, min(lanes, native.LANES)):
        count = (channels_out - column) // width
        part = taps[:, :, column : column + count * width]
        part = part.reshape(_TAPS**2, channels_in, count, width)
        panels.append(part.transpose(0, 2, 1, 3).reshape(_TAPS**2, channels_in * count * width))
        column += count * width
    return jnp.concatenate(panels, axis=1)


def along_width(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with stride 1 and a padding of 1, in tiles along the width.

    Args:
      x: `[batch, height, width, channels_in]`, width a multiple of `OUTPUTS`.
      kernel: of the same dtype, `[3, 3, channels_in, channels_out]`.

    Returns:
      `[batch, height, width, channels_out]`.
    """
    count, height, width, channels = x.shape
    tiles = width // OUTPUTS
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, OUTPUTS - 1), (0, 0)))
    blocks = padded.reshape(count, height + 2, tiles + 1, OUTPUTS, channels)
    inputs = [blocks[:, :, :-1, i] for i in range(OUTPUTS)]
    inputs += [blocks[:, :, 1:, i] for i in range(_TAPS - 1)]
    kernels = jnp.einsum("sw,hwio->shio", _KERNEL.astype(kernel.dtype), kernel)
    pairs = zip(_sums(_INPUT, inputs), kernels, strict=True)
    outputs = _sums(_OUTPUT, [_columns(sums, taps, height) for sums, taps in pairs])
    return jnp.stack(outputs, axis=3).reshape(count, height, width, kernel.shape[-1])


def _columns(x: jax.Array, taps: jax.Array, height: int) -> jax.Array:
    """Convolve `[n, height + 2, w, in]` along the height with `[3, in, out]`, without padding."""
    if taps.shape[1] > _FEW_CHANNELS:
        return plain.conv2d(x, taps[:, None], 1, NO_PADDING)
    rows = jnp.concatenate([x[:, i : i + height] for i in range(_TAPS)], axis=-1)
    return rows @ taps.reshape(-1, taps.shape[-1])


def _sums(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the rows of `matrix @ terms`, without products by 0, 1 and -1."""
    sums = []
    for row in matrix:
        total: jax.Array | None = None
        for factor, term in zip(row.tolist(), terms, strict=True):
            if factor == 0:
                continue
            if total is None:
                total = term if factor == 1 else factor * term
            elif abs(factor) == 1:
                total = total + term if factor == 1 else total - term
            else:
                total = total + factor * term
        assert total is not None
        sums.append(total)
    return sums
