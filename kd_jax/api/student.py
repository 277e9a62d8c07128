"""A trained student, to be called on images."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from kd_jax import models
from kd_jax.distillation import augment
from kd_jax.kernels import lowering
from kd_jax.runtime.errors import UserError

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained network.

    Attributes:
      network: with the normalisation of its pixels.
      variables: `params` and `batch_stats`, float32 in host memory.
      image_shape: `(H, W, C)` of the images that it was trained on.
      class_names: of its outputs; None if nobody knows them.
    """

    network: models.Network
    variables: Any
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None

    def __call__(self, images: Any) -> np.ndarray:
        """Return logits, float32 `[N, classes]`.

        Args:
          images: uint8 `[N, H, W, C]`, red first; normalisation is part of the network.

        Raises:
          UserError: they are of another type or shape.
        """
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.shape[1:] != self.image_shape or array.ndim != 4:
            shape = ", ".join(map(str, self.image_shape))
            raise UserError(
                f"the images are {array.dtype} of shape {array.shape}: expected uint8 [N, {shape}]"
            )
        parts = [np.zeros((0, self.network.num_classes), np.float32)]
        for first in range(0, len(array), _BATCH):
            chunk = array[first : first + _BATCH]
            count = len(chunk)
            if first and count < _BATCH:  # one program for all but a first that is short
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], _BATCH - count, axis=0)])
            parts.append(np.asarray(self._logits(self.variables, chunk))[:count])
        return np.concatenate(parts)

    @functools.cached_property
    def _logits(self) -> Any:
        def logits(variables: Any, images: jax.Array) -> jax.Array:
            with lowering.forced("plain"):
                return self.network.logits(variables, augment.to_pixels(images))

        return jax.jit(logits)
