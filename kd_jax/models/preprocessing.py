"""What a network does to the common view before its first layer: size, order of channels, range.

The view of a step is the same for all networks. Whatever one of them needs besides is done inside
it, so that student and teacher still answer about the same pixels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From pixels to the input of a network.

    Attributes:
      mean, std: of pixels in [0, 1], one value for each channel in the order red, green, blue.
      channels: `rgb`, or `bgr`.
      input_size: height and width that the network wants, in pixels; 0: as they come.
      crop_fraction: 0: the whole image is resized to that, whatever its shape. Otherwise its short
        side is resized to `input_size / crop_fraction`, and the centre is cropped.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str = "rgb"
    input_size: int = 0
    crop_fraction: float = 0.0

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Return the input of the network, float32 `[n, size, size, C]`.

        Args:
          pixels: float32 `[n, H, W, C]` in [0, 1], red first.
        """
        sides = pixels.shape[1:3]
        size = self.input_size
        if size and self.crop_fraction:
            short = size / self.crop_fraction
            height, width = (round(side * short / min(sides)) for side in sides)
            pixels = _resize(pixels, height, width)
            top, left = (height - size) // 2, (width - size) // 2
            pixels = pixels[:, top : top + size, left : left + size]
        elif size:
            pixels = _resize(pixels, size, size)
        normalised = (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return normalised[..., ::-1] if self.channels == "bgr" else normalised


def _resize(pixels: jax.Array, height: int, width: int) -> jax.Array:
    count, *sides, channels = pixels.shape
    if sides == [height, width]:
        return pixels
    shape = (count, height, width, channels)
    return jax.image.resize(pixels, shape, "bilinear")  # antialiased where it shrinks
