"""Data sets as uint8 arrays: CIFAR through tfds, and scikit-learn's digits for the demo.

A set that fits in memory (CIFAR is 150 MB) is kept whole, and batches are indices into it.
Validation is always held out of train; the test split is only ever tested on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from kd_jax import caches
from kd_jax.console import logger
from kd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 `[N, H, W, C]` and labels int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The three splits, and what a network must know of them.

    Attributes:
      train, val, test: disjoint; val was held out of the published train split.
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
}
NUM_CLASSES = {"cifar100": 100, "cifar10": 10, "digits": 10}
IMAGE_SHAPE = (32, 32, 3)  # of all three


def load(config: ConfigDict) -> DataSet:
    """Load the data set that `config.dataset` names.

    Raises:
      UserError: it is not where it should be, cannot be downloaded, or is not what it claims.
    """
    name = config.name
    if name == "digits":
        train, test = _load_digits()
    else:
        train, test = _load_tfds(name, config.data_dir, config.download)
    num_classes = NUM_CLASSES[name]
    for split_name, split in (("train", train), ("test", test)):
        if len(split) == 0 or split.labels.min() < 0 or split.labels.max() >= num_classes:
            raise UserError(
                f"the {split_name} split of {name} has labels outside 0..{num_classes - 1} or no "
                "example at all: prepare the data set anew"
            )
    if config.val_examples >= len(train):
        raise UserError(
            f"config.dataset.val_examples is {config.val_examples}, but {name} has only "
            f"{len(train)} training examples: hold out fewer"
        )
    val_indices = stratified_indices(train.labels, config.val_examples, config.split_seed)
    held_out = np.zeros(len(train), bool)
    held_out[val_indices] = True
    mean, std = NORMALISATION.get(name) or _pixel_statistics(train.images[~held_out])
    return DataSet(
        name=name,
        train=Split(train.images[~held_out], train.labels[~held_out]),
        val=Split(train.images[held_out], train.labels[held_out]),
        test=test,
        num_classes=num_classes,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(train, test),
    )


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
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:n]
        for label, n in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pixels = images.reshape(-1, images.shape[-1]) / 255.0
    return tuple(pixels.mean(0).tolist()), tuple(pixels.std(0).tolist())


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()


def _load_digits() -> tuple[Split, Split]:
    """Return scikit-learn's 1,797 digits as 32x32 RGB, a fifth of them as test split."""
    from scipy import ndimage
    from sklearn import datasets

    digits = datasets.load_digits()
    scaled = ndimage.zoom(digits.images / 16.0, (1, 4, 4), order=1, mode="nearest", grid_mode=True)
    grey = np.round(255.0 * scaled).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    test = np.zeros(len(labels), bool)
    test[stratified_indices(labels, 360, seed=0)] = True
    return Split(images[~test], labels[~test]), Split(images[test], labels[test])


def _load_tfds(name: str, data_dir: str, download: bool) -> tuple[Split, Split]:
    """Return the published train and test splits, decoded once and kept in the user's cache.

    Starting TensorFlow and decoding 60,000 PNG files takes longer than starting everything else,
    and a run that is resumed often pays for it each time: hence the cache of the arrays. It is
    keyed by the prepared files' names, sizes and times.
    """
    directory = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    directory = directory.expanduser()
    prepared = sorted((directory / name).glob("*/*.tfrecord*"))
    if not prepared and not download:
        raise UserError(
            f"no data set {name} in {directory}: point config.dataset.data_dir or TFDS_DATA_DIR "
            "at the directory that holds it, or let tfds download it with "
            "--config.dataset.download=true"
        )
    if prepared:
        stamp = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in prepared]
        key = hashlib.sha256(repr(stamp).encode()).hexdigest()[:16]
        cache = caches.directory("data") / f"{name}-{key}"
        cached = _read_cache(cache)
        if cached:
            return cached
    splits = _decode_tfds(name, directory, download)
    if prepared:
        _write_cache(cache, splits)
    return splits


def _decode_tfds(name: str, directory: Path, download: bool) -> tuple[Split, Split]:
    from kd_jax import tf_quietly

    tfds = tf_quietly.import_tfds()
    try:
        builder = tfds.builder(name, data_dir=directory)
        if download:
            builder.download_and_prepare()
        splits = []
        for split in ("train", "test"):
            batches = tfds.as_numpy(builder.as_dataset(split=split, batch_size=1000))
            parts = [(batch["image"], batch["label"]) for batch in batches]
            images = np.concatenate([image for image, _ in parts])
            labels = np.concatenate([label for _, label in parts]).astype(np.int32)
            splits.append(Split(images, labels))
    except Exception as error:  # tfds raises many kinds: whatever it is, the data is not usable
        raise UserError(
            f"tfds cannot give {name} from {directory} ({type(error).__name__}: "
            f"{str(error)[:200]}): check the directory, or the network when it should download"
        ) from error
    return splits[0], splits[1]


_CACHED_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def _read_cache(path: Path) -> tuple[Split, Split] | None:
    try:
        arrays = [np.load(path / f"{name}.npy", allow_pickle=False) for name in _CACHED_ARRAYS]
        digest = (path / "sha256").read_text()
    except (OSError, ValueError):
        return None
    train, test = Split(*arrays[:2]), Split(*arrays[2:])
    return (train, test) if _fingerprint(train, test) == digest else None


def _write_cache(path: Path, splits: tuple[Split, Split]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent))
        arrays = [array for split in splits for array in (split.images, split.labels)]
        for name, array in zip(_CACHED_ARRAYS, arrays, strict=True):
            np.save(partial / f"{name}.npy", array)
        (partial / "sha256").write_text(_fingerprint(*splits))
        partial.rename(path)
    except OSError as error:  # a cache that cannot be written costs time, nothing else
        logger.warning("the decoded data set is not cached: %s", error)
