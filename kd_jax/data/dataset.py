"""Data sets as uint8 arrays, whole in memory (CIFAR is 150 MB): batches are indices into them.

Validation is held out of train, and the test split is only ever tested on; the one exception, for
the study's own way of doing it, has to be asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import catalog, class_names, folder_tree, sources, tfds_source
from kd_jax.data.splits import Source, Split, count_held_out, stratified_indices
from kd_jax.runtime.console import logger
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
      class_names: in the order of the labels, all different; None if nobody knows them.
    """

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    class_names: tuple[str, ...] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @functools.cached_property
    def test_digest(self) -> str:
        """The sha256 of the test split alone: what a network was measured on."""
        digest = hashlib.sha256(repr(self.test.images.shape).encode())
        for array in (self.test.images, self.test.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def split(self, name: str) -> Split:
        """Return the split called `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def load(
    config: ConfigDict, source: Source | None = None, validation: Split | None = None
) -> DataSet:
    """Load the data set that `config.dataset` names.

    Args:
      config: `config.dataset`.
      source: the data set itself, given from Python; None: it is read.
      validation: given with `source`.

    Raises:
      UserError: it is not where it should be, cannot be downloaded, or is not what it claims.
    """
    name = tfds_source.base_name(config.name)
    if source is not None:
        return _of_arrays(config, source, validation)
    source = sources.read(config)
    # Read with the images: what lies there when a run ends may be named otherwise.
    names = class_names.known(config, source.num_classes)
    train, test, num_classes = source.train, source.test, source.num_classes
    size = config.image_size
    expected = (size, size, 3) if size else (*train.images.shape[1:3], 3)
    facts = catalog.facts(name)
    if facts.image_size and not size:
        expected = (facts.image_size, facts.image_size, 3)
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
    if name == catalog.FOLDER:
        _say_what_was_read(config, source, names, (train, val, test))
    mean, std = facts.mean, facts.std
    if mean is None or std is None:
        mean, std = _pixel_statistics(train.images)
    return DataSet(
        name=name,
        train=train,
        val=val,
        test=test,
        num_classes=num_classes,
        mean=mean,
        std=std,
        fingerprint=source.fingerprint(),
        class_names=names,
    )


def _of_arrays(config: ConfigDict, source: Source, validation: Split | None) -> DataSet:
    """Return the data set of arrays, which `arrays.source` has checked."""
    assert validation is not None
    mean, std = _pixel_statistics(source.train.images)
    fingerprint = hashlib.sha256(
        source.fingerprint().encode() + validation.images.tobytes() + validation.labels.tobytes()
    ).hexdigest()
    return DataSet(
        name=config.name,
        train=source.train,
        val=validation,
        test=source.test,
        num_classes=source.num_classes,
        mean=mean,
        std=std,
        fingerprint=fingerprint,
    )


def _hold_out(config: ConfigDict, train: Split, test: Split) -> tuple[Split, Split]:
    """Return what is trained on, and what is validated on."""
    if config.validation == "half_of_test":
        order = np.random.default_rng(config.split_seed).permutation(len(test))
        chosen = np.sort(order[: len(test) // 2])
        return train, Split(test.images[chosen], test.labels[chosen])
    count = count_held_out(config.val_examples, len(train))
    if count >= len(train):
        raise UserError(
            f"config.dataset.val_examples is {config.val_examples:.12g}, but {config.name} has "
            f"only {len(train)} training examples: hold out fewer"
        )
    held_out = np.zeros(len(train), bool)
    held_out[stratified_indices(train.labels, count, config.split_seed)] = True
    return (
        Split(train.images[~held_out], train.labels[~held_out]),
        Split(train.images[held_out], train.labels[held_out]),
    )


def _say_what_was_read(
    config: ConfigDict,
    source: Source,
    names: tuple[str, ...] | None,
    splits: tuple[Split, Split, Split],
) -> None:
    """Log what a folder holds; what was passed over in it, `image_folder` tells."""
    labels = np.concatenate([source.train.labels, source.test.labels])
    counts = np.bincount(labels, minlength=source.num_classes)
    least, most = counts.argmin(), counts.argmax()
    ends = [
        f"{counts[label]} ({folder_tree.shown(names[label]) if names else label})"
        for label in (least, most)
    ]
    if counts[least] == counts[most]:
        ends = [f"{counts[least]}"]
    height, width = source.train.images.shape[1:3]
    sizes = ""
    if source.file_sizes:
        first, last = (f"{w} x {h}" for h, w in source.file_sizes)
        sizes = f" of {first}" + (f" to {last}" if last != first else "")
        sizes += " pixels" + (f", brought to {width} x {height}" if config.image_size else "")
    logger.info(
        "%s: %d classes, %d images%s; %s of each class",
        *(config.data_dir, source.num_classes, len(labels), sizes, " to ".join(ends)),
    )
    train, val, test = map(len, splits)
    logger.info("%d to train on, %d for validation, %d to test on", train, val, test)


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
