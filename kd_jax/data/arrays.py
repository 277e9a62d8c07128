"""A data set from arrays in memory, given from Python: with labels, or without."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.data.splits import UNLABELLED, Source, Split
from kd_jax.runtime.errors import UserError

NAME = "arrays"  # of the data set in a config


def split(data: Any, what: str, image_shape: tuple[int, ...] | None = None) -> Split:
    """Return the split of images, or of images and labels.

    Args:
      data: `images`, or `(images, labels)`: uint8 `[N, H, W, 3]`, and whole numbers `[N]` or None.
      what: the argument that it was given as, for messages.
      image_shape: that the images must have; None: any.

    Raises:
      UserError: they are not that.
    """
    images, labels = data if isinstance(data, tuple | list) and len(data) == 2 else (data, None)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise UserError(
            f"{what} has images of {images.dtype} and shape {images.shape}: expected uint8 "
            "[N, H, W, 3], at least one"
        )
    if image_shape is not None and images.shape[1:] != image_shape:
        raise UserError(
            f"{what} has images of shape {images.shape[1:]}: expected {image_shape}, as the others"
        )
    if labels is None:
        return Split(images, np.full(len(images), UNLABELLED, np.int32))
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise UserError(
            f"{what} has labels of {labels.dtype} and shape {labels.shape}: expected whole numbers "
            f"of shape ({len(images)},), one for each image"
        )
    if labels.min() < 0:
        raise UserError(f"{what} has the label {labels.min()}: expected numbers from 0")
    return Split(images, labels.astype(np.int32))


def source(
    train: Split, test: Split, val: Split, unlabelled: Split | None, num_classes: int
) -> Source:
    """Return the data set of these splits.

    Args:
      train: to train on.
      test: to test on.
      val: to validate on; only checked.
      unlabelled: further images to train on, which only the teacher labels.
      num_classes: of the labels, or of the teacher where there are none.

    Raises:
      UserError: a label is of no class.
    """
    for name, labels in (("data", train.labels), ("test", test.labels), ("val", val.labels)):
        if labels.max() >= num_classes:
            raise UserError(
                f"{name} has the label {labels.max()}: expected numbers below the "
                f"{num_classes} classes"
            )
    if unlabelled is not None:
        train = Split(
            np.concatenate([train.images, unlabelled.images]),
            np.concatenate([train.labels, np.full(len(unlabelled), UNLABELLED, np.int32)]),
        )
    return Source(train, test, num_classes)
