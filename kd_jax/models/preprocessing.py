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
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str = "rgb"
    input_size: int = 0

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Return the input of the network, float32 `[n, size, size, C]`.

        Args:
          pixels: float32 `[n, H, W, C]` in [0, 1], red first.
        """
        count, height, width, channels = pixels.shape
        size = self.input_size
        if size and (height, width) != (size, size):
            shape = (count, size, size, channels)
            pixels = jax.image.resize(pixels, shape, "bilinear")  # antialiased where it shrinks
        normalised = (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return normalised[..., ::-1] if self.channels == "bgr" else normalised
