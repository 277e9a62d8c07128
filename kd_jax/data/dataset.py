"""Data sets as uint8 arrays, whole in memory (CIFAR is 150 MB): batches are indices into them.

Validation is held out of train, and the test split is only ever tested on; the one exception, for
the study's own way of doing it, has to be asked for.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import sources, tfds_source
from kd_jax.data.splits import Split, stratified_indices
from kd_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The three splits, and what a network must know of them.

    Attributes:
      train, val, test: disjoint, val held out of the published train split; except under
        `validation=half_of_test`, where val is a part of test.
      num_classes: labels are in `[0, num_classes)`.
      mean, std: of train's pixels in [0, 1], one value a channel; the default normalisation.
      fingerprint: sha256 of the published train and test arrays.
    """

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def split(self, name: str) -> Split:
        """Return the split called `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


# Published normalisation (mean, std); the teachers' weights were made under these.
NORMALISATION = {
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet2012": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # BiT's; others have their own
}
NUM_CLASSES = {"cifar100": 100, "cifar10": 10, "digits": 10, "imagenet2012": 1000}
IMAGE_SHAPE = (32, 32, 3)  # where all images have it, as they are:
SMALL_IMAGES = ("cifar100", "cifar10", "digits")
# Names of the superclasses, and the superclass of each class. Source: Krizhevsky 2009; the data's
# own coarse labels.
SUPERCLASSES = {
    "cifar100": (
        ("aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables",
         "household electrical devices", "household furniture", "insects", "large carnivores",
         "large man-made outdoor things", "large natural outdoor scenes",
         "large omnivores and herbivores", "medium-sized mammals", "non-insect invertebrates",
         "people", "reptiles", "small mammals", "trees", "vehicles 1", "vehicles 2"),
        (4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
         6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
         5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
         10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
         16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
    )
}  # fmt: skip


def load(config: ConfigDict) -> DataSet:
    """Load the data set that `config.dataset` names.

    Raises:
      UserError: it is not where it should be, cannot be downloaded, or is not what it claims.
    """
    name = tfds_source.base_name(config.name)
    source = sources.read(config)
    train, test, num_classes = source.train, source.test, source.num_classes
    size = config.image_size
    expected = (size, size, 3) if size else (*train.images.shape[1:3], 3)
    if name in SMALL_IMAGES and not size:
        expected = IMAGE_SHAPE
    for split_name, split in (("train", train), ("test", test)):
        if len(split) and split.images.shape[1:] != expected:
            raise UserError(
                f"the {split_name} split of {name} has images of shape {split.images.shape[1:]}, "
                f"expected {expected}: prepare the data set anew"
            )
        if len(split) == 0 or split.labels.min() < 0 or split.labels.max() >= num_classes:
            raise UserError(
                f"the {split_name} split of {name} has labels outside 0..{num_classes - 1} or no "
                "example at all: prepare the data set anew"
            )
    train, val = _hold_out(config, train, test)
    mean, std = NORMALISATION.get(name) or _pixel_statistics(train.images)
    return DataSet(
        name=name,
        train=train,
        val=val,
        test=test,
        num_classes=num_classes,
        mean=mean,
        std=std,
        fingerprint=source.fingerprint(),
    )


def _hold_out(config: ConfigDict, train: Split, test: Split) -> tuple[Split, Split]:
    """Return what is trained on, and what is validated on."""
    if config.validation == "half_of_test":
        order = np.random.default_rng(config.split_seed).permutation(len(test))
        chosen = np.sort(order[: len(test) // 2])
        return train, Split(test.images[chosen], test.labels[chosen])
    if config.val_examples >= len(train):
        raise UserError(
            f"config.dataset.val_examples is {config.val_examples}, but {config.name} has only "
            f"{len(train)} training examples: hold out fewer"
        )
    held_out = np.zeros(len(train), bool)
    held_out[stratified_indices(train.labels, config.val_examples, config.split_seed)] = True
    return (
        Split(train.images[~held_out], train.labels[~held_out]),
        Split(train.images[held_out], train.labels[held_out]),
    )


def _pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], from its histogram."""
    values, means, stds = np.arange(256) / 255.0, [], []
    for channel in range(images.shape[-1]):
        counts = sum(np.bincount(image[..., channel].ravel(), minlength=256) for image in images)
        mean = float(np.average(values, weights=counts))
        variance = float(np.average((values - mean) ** 2, weights=counts))
        means.append(mean)
        stds.append(max(variance**0.5, 1 / 255.0))  # a channel of one value says nothing
    return tuple(means), tuple(stds)
