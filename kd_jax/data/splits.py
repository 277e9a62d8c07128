"""The splits of a data set as arrays, and how one is cut out of another."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

UNLABELLED = -1


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and labels.

    Attributes:
      images: uint8 `[N, H, W, C]`.
      labels: int32 `[N]`; `UNLABELLED` where nobody knows.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def known_labels(self) -> np.ndarray | None:
        """The labels; None unless that of every example is known."""
        return None if (self.labels == UNLABELLED).any() else self.labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Source:
    """The published splits, and the number of classes that their labels are of.

    Attributes:
      file_sizes: height and width of the smallest and of the largest image as their files have
        them, by the number of pixels; None where nobody looked.
    """

    train: Split
    test: Split
    num_classes: int
    file_sizes: tuple[tuple[int, int], tuple[int, int]] | None = None

    def fingerprint(self) -> str:
        """Return the sha256 of all arrays.

        Shapes are part of it only where bytes cannot tell them: of images of one value on both
        sides of the boundary between the splits. Of all others the bytes are enough, and runs of
        earlier versions keep their fingerprint.
        """
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        if _is_blank(self.train.images[-1:]) and _is_blank(self.test.images[:1]):
            digest.update(repr((self.train.images.shape, self.test.images.shape)).encode())
        return digest.hexdigest()


def _is_blank(image: np.ndarray) -> bool:
    return bool((image == image.flat[0]).all()) if image.size else True


def hold_out_test(split: Split, num_classes: int, count: int) -> Source:
    """Cut a test split of `count` examples out of a split, always the same."""
    is_test = np.zeros(len(split), bool)
    is_test[stratified_indices(split.labels, count, seed=0)] = True
    return Source(
        train=Split(split.images[~is_test], split.labels[~is_test]),
        test=Split(split.images[is_test], split.labels[is_test]),
        num_classes=num_classes,
    )


def count_held_out(wanted: float, examples: int) -> int:
    """Return how many examples are held out of so many.

    Args:
      wanted: `config.dataset.val_examples`: how many, or a share below 1, of which at least one
        example comes.
      examples: of the split that they are held out of.
    """
    return max(1, round(wanted * examples)) if wanted < 1 else int(wanted)


def stratified_indices(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` examples, each class in proportion, at random but reproducibly.

    Args:
      labels: int `[N]`.
      count: how many, below N.
      seed: of the choice.

    Returns:
      sorted int `[count]`.
    """
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * (count / len(labels))
    counts = np.floor(shares).astype(int)
    # What rounding down left goes to the largest remainders.
    for i in np.argsort(counts - shares, kind="stable")[: count - counts.sum()]:
        counts[i] += 1
    indices = [
        rng.permutation(np.flatnonzero(labels == label))[:n]
        for label, n in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(indices))
