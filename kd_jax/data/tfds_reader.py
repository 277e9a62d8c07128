"""What only tfds can do: download a set, and decode a prepared one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import image_files
from kd_jax.data.splits import Source, Split
from kd_jax.runtime import memory, quiet_tensorflow
from kd_jax.runtime.errors import UserError

_AT_ONCE = 1000  # examples


def download(name: str, directory: Path) -> None:
    """Let tfds download and prepare a set.

    Raises:
      UserError: it cannot.
    """
    tfds = quiet_tensorflow.import_tfds()
    try:
        tfds.builder(name, data_dir=directory).download_and_prepare()
    except Exception as error:  # tfds raises many kinds: whatever it is, there is no data
        raise _cannot(name, directory, error) from error


def decode(name: str, place: Path, parts: Sequence[tuple[str, int]], image_size: int) -> Source:
    """Decode a prepared set.

    Args:
      name: of the set, for what is said of it.
      place: the directory of its version.
      parts: the parts to train and to test on, and how many examples each has.
      image_size: 0: as they are.

    Raises:
      UserError: it is not a set of images of one size with a label each, does not fit into memory,
        or cannot be read.
    """
    tfds = quiet_tensorflow.import_tfds()
    try:
        builder = tfds.builder_from_directory(place)
        features = builder.info.features
        _check(name, features, image_size)
        height, width = features["image"].shape[:2]
        shape = (image_size, image_size, 3) if image_size else (height, width, 3)
        total = sum(count for _, count in parts)
        memory.check_fits(total * int(np.prod(shape)), f"{name}, {total:,} images of {shape},")
        splits = [_read(tfds, builder, part, count, shape, image_size) for part, count in parts]
    except UserError:
        raise
    except Exception as error:  # tfds raises many kinds: whatever it is, the data is not usable
        raise _cannot(name, place, error) from error
    return Source(splits[0], splits[1], features["label"].num_classes)


def _cannot(name: str, place: Path, error: Exception) -> UserError:
    reason = re.sub(r"\{\{.*?\}\}", "", str(error)).strip()  # where in TensorFlow's graph it was
    return UserError(
        f"tfds cannot give {name} from {place} ({type(error).__name__}: {reason[:200]}): check "
        "the directory, or the network when it should download"
    )


def _check(name: str, features: Any, image_size: int) -> None:
    """Raise `UserError` unless it classifies images, of one size."""
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(
            f"config.dataset.name is {name}, whose features are {', '.join(features)}: "
            "expected a set with an image and a label"
        )
    image = features["image"]
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (1, 3, 4):
        raise UserError(
            f"the images of {name} are {np.dtype(image.np_dtype)} of {image.shape[-1]} channels: "
            "expected bytes (uint8) of 1, 3 or 4"
        )
    if not image_size and None in image.shape[:2]:
        raise UserError(
            f"the images of {name} differ in size: give config.dataset.image_size, pixels "
            "a side, and they are scaled and cropped to it"
        )


def _read(
    tfds: Any, builder: Any, part: str, count: int, shape: tuple[int, ...], image_size: int
) -> Split:
    dataset = _examples(builder, part).map(_to_rgb(image_size)).batch(_AT_ONCE)
    images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
    num_read = 0
    for batch in tfds.as_numpy(dataset):
        number = len(batch["label"])
        if num_read + number <= count:
            images[num_read : num_read + number] = batch["image"]
            labels[num_read : num_read + number] = batch["label"]
        num_read += number
    if num_read != count:
        raise UserError(
            f"{part} of {builder.data_dir} has {num_read:,} examples, where its dataset_info.json "
            f"says {count:,}: files of it are cut short or of another set; prepare it anew"
        )
    return Split(images, labels)


def _examples(builder: Any, part: str) -> Any:
    """Return a part as a `tf.data.Dataset`, from whichever files it was prepared in."""
    import tensorflow as tf
    from tensorflow_datasets.core import decode, file_adapters

    if builder.info.file_format != file_adapters.FileFormat.ARRAY_RECORD:
        return builder.as_dataset(split=part)
    raw_bytes = decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split=part, deserialize_method=raw_bytes)

    def all_records() -> Iterator[bytes]:
        for number in range(len(records)):
            yield records[number]

    dataset = tf.data.Dataset.from_generator(
        all_records, output_signature=tf.TensorSpec((), tf.string)
    )
    return dataset.map(builder.info.features.deserialize_example)


def _to_rgb(image_size: int) -> Callable[[Any], dict[str, Any]]:
    """Return what makes an example of one size and three channels, inside tf.data."""
    import tensorflow as tf

    def example(features: Any) -> dict[str, Any]:
        image = features["image"]
        if image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        elif image.shape[-1] == 4:  # as in a folder
            image, alpha = tf.cast(image[..., :3], tf.int32), tf.cast(image[..., 3:], tf.int32)
            blend = image * alpha + tf.constant(image_files.BACKGROUND) * (255 - alpha)
            image = tf.cast((blend + 127) // 255, tf.uint8)
        if image_size:
            size = tf.cast(tf.shape(image)[:2], tf.float32)
            scaled_size = tf.round(size * image_size / tf.reduce_min(size))
            image = tf.image.resize(image, tf.cast(scaled_size, tf.int32), antialias=True)
            image = tf.image.resize_with_crop_or_pad(image, image_size, image_size)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return {"image": image, "label": features["label"]}

    return example
