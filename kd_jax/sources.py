"""Where images come from: any image classification set of tfds, a folder of images, the digits.

Each gives the published train and test splits as arrays, decoded once and kept in the user's cache:
starting TensorFlow and decoding 60,000 PNG files takes longer than starting everything else, and a
run that is resumed often would pay for it each time. The cache is keyed by the names, sizes and
times of the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd_jax import caches
from kd_jax.console import logger
from kd_jax.errors import UserError

DIGITS, FOLDER = "digits", "folder"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
_HELD_OUT = 0.2  # of a folder that has no test split


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 `[N, H, W, C]` and labels int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Source:
    """The published splits, and the number of classes that their labels are of."""

    train: Split
    test: Split
    num_classes: int

    def fingerprint(self) -> str:
        """Return the sha256 of all arrays."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()


def read(config: ConfigDict) -> Source:
    """Return the data set that `config.dataset` names, as it is published.

    Raises:
      UserError: it is not there, cannot be downloaded, or cannot be read.
    """
    if config.name == DIGITS:
        return digits()
    if config.name == FOLDER:
        return folder(config)
    return from_tfds(config)


def digits() -> Source:
    """Return scikit-learn's 1,797 digits as 32x32 RGB, a fifth of them as test split."""
    from scipy import ndimage
    from sklearn import datasets

    bunch = datasets.load_digits()
    scaled = ndimage.zoom(bunch.images / 16.0, (1, 4, 4), order=1, mode="nearest", grid_mode=True)
    grey = np.round(255.0 * scaled).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int32)
    return _hold_out_test(Split(images, labels), 10, 360)


def from_tfds(config: ConfigDict) -> Source:
    """Return an image classification set of tfds, by its name there."""
    directory = Path(config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    directory = directory.expanduser()
    prepared = sorted((directory / config.name).rglob("*.tfrecord*"))
    if not prepared and not config.download:
        raise UserError(
            f"no data set {config.name} in {directory}: point config.dataset.data_dir or "
            "TFDS_DATA_DIR at the directory that holds it, let tfds download it with "
            "--config.dataset.download=true, or take config.dataset.name=folder for images of your "
            "own"
        )
    options = (config.train_split, config.test_split, config.image_size)
    return _kept(config.name, prepared, options, lambda: _decode_tfds(config, directory))


def _decode_tfds(config: ConfigDict, directory: Path) -> Source:
    from kd_jax import tf_quietly

    tfds = tf_quietly.import_tfds()
    try:
        builder = tfds.builder(config.name, data_dir=directory)
        if config.download:
            builder.download_and_prepare()
        features, splits = builder.info.features, builder.info.splits
        _check_tfds(config, features, list(splits))
        read = []
        for name in (config.train_split, config.test_split):
            dataset = builder.as_dataset(split=name).map(_tf_example(config.image_size))
            parts = [
                (batch["image"], batch["label"]) for batch in tfds.as_numpy(dataset.batch(1000))
            ]
            images = np.concatenate([image for image, _ in parts])
            labels = np.concatenate([label for _, label in parts]).astype(np.int32)
            read.append(Split(images, labels))
    except UserError:
        raise
    except Exception as error:  # tfds raises many kinds: whatever it is, the data is not usable
        raise UserError(
            f"tfds cannot give {config.name} from {directory} ({type(error).__name__}: "
            f"{str(error)[:200]}): check the directory, or the network when it should download"
        ) from error
    return Source(read[0], read[1], features["label"].num_classes)


def _check_tfds(config: ConfigDict, features: Any, splits: list[str]) -> None:
    """Raise `UserError` unless it classifies images, of one size, and has the splits."""
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(
            f"config.dataset.name is {config.name}, whose features are {', '.join(features)}: "
            "expected a set with an image and a label"
        )
    if not splits:
        raise FileNotFoundError("it is not prepared")
    for field in ("train_split", "test_split"):
        if config[field].split("[")[0] not in splits:
            raise UserError(
                f"config.dataset.{field} is {config[field]!r}, but {config.name} has "
                f"{', '.join(splits)}"
            )
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise UserError(
            f"the images of {config.name} are {np.dtype(features['image'].np_dtype)}: expected "
            "bytes (uint8)"
        )
    if not config.image_size and None in features["image"].shape[:2]:
        raise UserError(
            f"the images of {config.name} differ in size: give config.dataset.image_size, pixels "
            "a side, and they are scaled and cropped to it"
        )


def _tf_example(image_size: int) -> Callable[[Any], dict[str, Any]]:
    """Return what makes an example of one size and three channels, inside tf.data."""
    import tensorflow as tf

    def example(features: Any) -> dict[str, Any]:
        image = features["image"]
        if image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        if image_size:
            shape = tf.cast(tf.shape(image)[:2], tf.float32)
            scaled = tf.round(shape * image_size / tf.reduce_min(shape))
            image = tf.image.resize(image, tf.cast(scaled, tf.int32), antialias=True)
            image = tf.image.resize_with_crop_or_pad(image, image_size, image_size)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return {"image": image, "label": features["label"]}

    return example


def folder(config: ConfigDict) -> Source:
    """Return `data_dir/train/CLASS/*` and `data_dir/test/CLASS/*`; classes in order of their names.

    Without a test directory a fifth of each class is held out as test split, always the same.
    """
    root = Path(config.data_dir).expanduser()
    train = root / config.train_split
    if not config.data_dir or not train.is_dir():
        raise UserError(
            f"config.dataset.name is folder, and there is no directory {train}: expected "
            "config.dataset.data_dir to hold train/CLASS/*.png (or .jpg), and test/CLASS/*.png if "
            "there is a test split"
        )
    classes = sorted(path.name for path in train.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise UserError(f"{train} has {len(classes)} class(es): expected a directory for each")
    test = root / config.test_split
    listed = {config.train_split: _listed(train, classes)}
    if test.is_dir():
        listed[config.test_split] = _listed(test, classes)
    files = [path for pairs in listed.values() for path, _ in pairs]

    def decode() -> Source:
        read = [_read_images(pairs, config.image_size) for pairs in listed.values()]
        if len(read) == 2:
            return Source(read[0], read[1], len(classes))
        logger.warning("%s has no test split: a fifth of train is held out as one", root)
        return _hold_out_test(read[0], len(classes), round(_HELD_OUT * len(read[0])))

    return _kept(FOLDER, files, (classes, config.image_size), decode)


def _listed(directory: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return the images below a split's directory, each with its label."""
    unknown = {path.name for path in directory.iterdir() if path.is_dir()} - set(classes)
    if unknown:
        raise UserError(
            f"{directory / min(unknown)} is of a class that train has not: expected the classes "
            f"{', '.join(classes[:20])}"
        )
    pairs = []
    for label, name in enumerate(classes):
        below = sorted((directory / name).rglob("*")) if (directory / name).is_dir() else []
        pairs += [
            (path, label)
            for path in below
            if path.suffix.lower() in _SUFFIXES and path.exists()  # not a link to nothing
        ]
    if not pairs:
        raise UserError(f"{directory} has no image: expected CLASS/*{' or *'.join(_SUFFIXES)}")
    return pairs


def _read_images(pairs: list[tuple[Path, int]], image_size: int) -> Split:
    from PIL import Image

    images: list[np.ndarray] = []
    for path, _ in pairs:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(_scaled(image.convert("RGB"), image_size))
        except Exception as error:  # Pillow raises many kinds
            raise UserError(
                f"{path} cannot be read as an image ({error}): mend it or take it away"
            ) from error
        if images and pixels.shape != images[0].shape:
            raise UserError(
                f"{path} has {pixels.shape[0]} x {pixels.shape[1]} pixels, {pairs[0][0]} has "
                f"{images[0].shape[0]} x {images[0].shape[1]}: give config.dataset.image_size, "
                "and all are scaled and cropped to it"
            )
        images.append(pixels)
    return Split(np.stack(images), np.array([label for _, label in pairs], np.int32))


def _scaled(image: Any, size: int) -> Any:
    """Scale the shorter side to `size` and cut out the middle; 0 leaves it alone."""
    if not size:
        return image
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def _hold_out_test(split: Split, num_classes: int, count: int) -> Source:
    chosen = np.zeros(len(split), bool)
    chosen[stratified_indices(split.labels, count, seed=0)] = True
    return Source(
        train=Split(split.images[~chosen], split.labels[~chosen]),
        test=Split(split.images[chosen], split.labels[chosen]),
        num_classes=num_classes,
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


def _kept(name: str, files: Iterable[Path], options: Any, decode: Callable[[], Source]) -> Source:
    """Return what `decode` gives, from the cache where these very files were decoded before."""
    stamp = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    if not stamp:  # to be downloaded first
        return decode()
    key = hashlib.sha256(repr((stamp, options)).encode()).hexdigest()[:16]
    cache = caches.directory("data") / f"{name.replace('/', '-')}-{key}"
    source = _read_cache(cache)
    if source is None:
        source = decode()
        _write_cache(cache, source)
    return source


_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def _read_cache(path: Path) -> Source | None:
    try:
        arrays = [np.load(path / f"{name}.npy", allow_pickle=False) for name in _ARRAYS]
        about = json.loads((path / "about.json").read_text())
        source = Source(Split(*arrays[:2]), Split(*arrays[2:]), about["num_classes"])
        return source if source.fingerprint() == about["sha256"] else None
    except Exception:  # whatever a damaged file makes of its readers: it is decoded anew
        return None


def _write_cache(path: Path, source: Source) -> None:
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent))
        splits = (source.train, source.test)
        arrays = [array for split in splits for array in (split.images, split.labels)]
        for name, array in zip(_ARRAYS, arrays, strict=True):
            np.save(partial / f"{name}.npy", array)
        about = {"num_classes": source.num_classes, "sha256": source.fingerprint()}
        (partial / "about.json").write_text(json.dumps(about))
        if path.exists():  # damaged, or another process was faster: ours is as good
            old = path.with_name(f"{partial.name}-old")
            path.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        partial.rename(path)
    except OSError as error:  # a cache that cannot be written costs time, nothing else
        logger.warning("the decoded data set is not cached: %s", error)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
