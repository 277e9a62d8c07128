"""A trained student, to be called on images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import models
from kd_jax.data import image_files, loose_images
from kd_jax.inference.classifier import Choice, Classifier
from kd_jax.kernels import lowering
from kd_jax.runtime.errors import UserError
from kd_jax.training.local_predictor import LocalPredictor

_IMAGES_AT_ONCE = 256  # that are decoded before they are classified


class Prediction(NamedTuple):
    """What a student says of one image.

    Attributes:
      image: path of its file; of an array its index.
      top: the most probable classes, the first one first.
    """

    image: str | int
    top: tuple[Choice, ...]


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
        if not len(array):
            return np.zeros((0, self.network.num_classes), np.float32)
        return self._predictor.logits(array)

    def predict(self, images: Any, top: int = 5) -> list[Prediction]:
        """Return the most probable classes of each image.

        Args:
          images: path of an image or of a folder of images, or several of them; or arrays uint8
            `[N, H, W, 3]`, red first. Of any size and kind: they are brought to the network's size
            as `python -m kd_jax.predict` does it.
          top: how many classes.

        Raises:
          UserError: an image cannot be read, or `top` is less than 1.
        """
        if top < 1:
            raise UserError(f"top={top}: expected 1 or more")
        classifier = Classifier(
            self.network.arch,
            "",
            self.image_shape,
            self.network.num_classes,
            self.class_names,
            self,
        )
        predictions = []
        for names, pixels in self._in_parts(images):
            rows = classifier.probabilities(pixels)
            predictions += [
                Prediction(name, tuple(classifier.top(row, top)))
                for name, row in zip(names, rows, strict=True)
            ]
        return predictions

    def _in_parts(self, images: Any) -> Iterable[tuple[list[Any], np.ndarray]]:
        """Yield names and pixels, uint8 `[n, H, W, C]`, of a part of the images at a time."""
        size = self.image_shape[:2]
        places = [images] if isinstance(images, str | Path) else images
        if isinstance(places, list | tuple) and all(isinstance(p, str | Path) for p in places):
            files = loose_images.find(map(str, places))
            for first in range(0, len(files), _IMAGES_AT_ONCE):
                chosen = files[first : first + _IMAGES_AT_ONCE]
                part, (pixels,) = loose_images.read(chosen, [size])
                for file in part:
                    if file.problem:
                        raise UserError(file.problem)
                yield [str(file.path) for file in part], pixels
            return
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != self.image_shape[-1]:
            raise UserError(
                f"the images are {array.dtype} of shape {array.shape}: expected paths, or uint8 "
                f"[N, H, W, {self.image_shape[-1]}]"
            )
        if array.shape[1:3] != size and len(array):
            from PIL import Image

            array = np.stack([image_files.fit(Image.fromarray(each), size) for each in array])
        for first in range(0, len(array), _IMAGES_AT_ONCE):
            pixels = array[first : first + _IMAGES_AT_ONCE]
            yield list(range(first, first + len(pixels))), pixels

    @functools.cached_property
    def _predictor(self) -> LocalPredictor:
        def logits(variables: Any, pixels: jax.Array) -> jax.Array:
            with lowering.forced("plain"):
                return self.network.logits(variables, pixels)

        return LocalPredictor(logits, self.variables)
