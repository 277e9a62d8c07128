"""A network on disk: `model.json` (the model card) and `model.safetensors` (the variables).

`import_teacher` and every finished run write the same two files, so both directories can be a
teacher. safetensors contains raw arrays and no code. The card contains the digest of the arrays; a
network whose arrays have another digest is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from kd_jax import models
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError

CARD_FILE = "model.json"
ARRAYS_FILE = "model.safetensors"
INT8 = "int8"
_SEPARATOR = "/"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Description of a stored network.

    Attributes:
      arch: name in the zoo.
      num_classes: width of its head.
      image_shape: `(H, W, C)` of its input images.
      mean, std: normalisation of pixels in [0, 1], one value per channel.
      dataset: name of the data set that it was trained on.
      claimed_top1: claimed accuracy on the test split of that data set, in percent; None without a
        claim.
      source: name of the file or run that it comes from.
      sha256: digest of that file, or of the stored arrays.
      arrays_sha256: `digest_of` the arrays; empty in old cards.
      class_names: names of its outputs, in their order; None if unknown.
      certificate: measures of the run that trained it, on the test split (percent, nats, number of
        examples, fingerprint of the data); None for imported weights.
      quantize: `int8` if it was trained with int8's numbers, and has their ranges; or `none`.
    """

    arch: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    claimed_top1: float | None
    source: str
    sha256: str
    certificate: dict[str, Any] | None = None
    arrays_sha256: str = ""
    class_names: tuple[str, ...] | None = None
    quantize: str = "none"

    def network(self, dtype: str = "float32") -> models.Network:
        """Return the network of the variables, see `models.build`."""
        quantized = self.quantize == INT8
        if quantized and dtype != "float32":
            raise UserError(
                f"the network {self.source} computes with int8's numbers, which {dtype} cannot "
                "hold exactly: take float32 for it"
            )
        return models.build(
            self.arch, self.num_classes, self.mean, self.std, dtype=dtype, quantized=quantized
        )


def save(directory: str | Path, card: ModelCard, variables: Mapping[str, Any]) -> None:
    """Write a network into a directory. A kill at any moment leaves the old or the new network.

    The arrays are first written beside the old ones, to a file with their digest in its name. When
    the card is replaced the new network is valid, because `load` looks for both files. Writers lock
    the directory, so several at once take turns.

    Raises:
      UserError: it cannot be written.
    """
    directory = Path(directory)
    leaves = flax.traverse_util.flatten_dict(dict(variables), sep=_SEPARATOR)
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    card = dataclasses.replace(card, arrays_sha256=digest_of(variables))
    staging_path = _staged(directory, card)
    with atomic_files.alone_in(directory):
        atomic_files.write_whole(staging_path, safetensors.numpy.save(arrays))
        atomic_files.write_json(directory / CARD_FILE, dataclasses.asdict(card))
        try:
            os.replace(staging_path, directory / ARRAYS_FILE)
        except OSError as error:
            # On a file system without locks another writer may have renamed the same arrays.
            if not isinstance(error, FileNotFoundError) or not _holds(directory, card):
                raise UserError(
                    f"{directory / ARRAYS_FILE} cannot be written ({error.strerror}): make the "
                    "place writable, and do not write to it twice at once"
                ) from error
        for leftover in directory.glob(_STAGED.format("*")):
            atomic_files.remove_left(leftover)


def _holds(directory: Path, card: ModelCard) -> bool:
    """Return whether the stored arrays have the digest of a card."""
    variables = _read_arrays(directory / ARRAYS_FILE)
    return variables is not None and digest_of(variables) == card.arrays_sha256


def may_be_written(directory: Path) -> bool:
    """Return whether a directory holds a network, or only files that a killed `save` left."""
    return (directory / CARD_FILE).exists() or all(
        atomic_files.is_partial(path) or path.match(_STAGED.format("*"))
        for path in directory.iterdir()
    )


_STAGED = ".model-{}.safetensors"


def _staged(directory: Path, card: ModelCard) -> Path:
    return directory / _STAGED.format(card.arrays_sha256[:16])


def digest_of(variables: Mapping[str, Any]) -> str:
    """Return the hex sha256 of variables: path, dtype, shape and bytes of each leaf, in path order.

    The bytes are those in memory: machines of the same byte order give the same digest.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(flax.traverse_util.flatten_dict(dict(variables), sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype.name} {np.shape(leaf)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load_card(directory: str | Path) -> ModelCard:
    """Return the card of a stored network.

    Raises:
      UserError: there is no card, or it is damaged.
    """
    path = Path(directory) / CARD_FILE
    try:
        return card_of(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the card of a stored network ({error}): expected a directory made by "
            "import_teacher or by a finished run"
        ) from None


def card_of(fields: Mapping[str, Any]) -> ModelCard:
    """Return the card of the fields that JSON holds; unknown ones are left out.

    Raises:
      AttributeError, TypeError, ValueError: they are no card.
    """
    field_names = {field.name for field in dataclasses.fields(ModelCard)}
    card = ModelCard(**{key: value for key, value in fields.items() if key in field_names})
    height, width, channels = card.image_shape
    names = card.class_names
    if names is not None and not isinstance(names, list | tuple):  # a text would be its letters
        raise TypeError("its class_names are no list")
    card = dataclasses.replace(
        card,
        image_shape=(height, width, channels),
        mean=tuple(card.mean),
        std=tuple(card.std),
        class_names=None if names is None else tuple(names),
    )
    _check_values(card)
    return card


def _check_values(card: ModelCard) -> None:
    """Raise `ValueError` or `TypeError` at the first invalid value of a card."""
    for name in ("arch", "dataset", "source", "sha256", "arrays_sha256"):
        if not isinstance(getattr(card, name), str):
            raise TypeError(f"its {name} is no text")
    for number in (card.num_classes, *card.image_shape):
        if type(number) is not int or number < 1:
            raise ValueError(f"{number!r} is no number of classes, pixels or channels")
    if card.quantize not in ("none", INT8):
        raise ValueError(f"its quantize is {card.quantize!r}")
    if len(card.mean) != card.image_shape[2] or len(card.std) != card.image_shape[2]:
        raise ValueError("it has not one mean and one std for each channel")
    if not all(map(math.isfinite, (*card.mean, *card.std))) or min(card.std) <= 0:
        raise ValueError(f"its mean is {card.mean} and its std {card.std}")
    if card.claimed_top1 is not None and not math.isfinite(card.claimed_top1):
        raise ValueError(f"its claimed_top1 is {card.claimed_top1}")
    if card.certificate is not None and not isinstance(card.certificate, dict):
        raise TypeError("its certificate is no object")
    for name in ("top1", "examples"):
        value = (card.certificate or {}).get(name, 0)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise TypeError(f"the {name} of its certificate is {value!r}, expected a number")
    if card.class_names is not None:
        if not all(isinstance(name, str) for name in card.class_names):
            raise TypeError("a name of its classes is no text")
        if not len(set(card.class_names)) == len(card.class_names) == card.num_classes:
            raise ValueError(f"it has not {card.num_classes} different names of classes")


def load(
    directory: str | Path, network: models.Network | None = None
) -> tuple[ModelCard, dict[str, Any]]:
    """Return the card of a stored network, with the digest of its arrays, and its variables.

    Args:
      directory: that holds it.
      network: that the arrays are of; None: the card names one of the zoo.

    Raises:
      UserError: files are missing or damaged, the arrays have another digest or do not fit the
        architecture, or values are not finite.
    """
    directory = Path(directory)
    for _ in range(3):  # another process may be writing a new network
        card = load_card(directory)
        for path in (directory / ARRAYS_FILE, _staged(directory, card)):
            variables = _read_arrays(path)
            if variables is not None:
                digest = digest_of(variables)
                if digest == card.arrays_sha256 or not card.arrays_sha256:
                    expected = network or card.network()
                    check_fit(expected, variables, card.image_shape, str(directory))
                    return dataclasses.replace(card, arrays_sha256=digest), variables
    raise UserError(
        f"{directory / ARRAYS_FILE} is not there, or does not hold the arrays that {CARD_FILE} "
        f"beside it tells of (sha256 {card.arrays_sha256[:8]}): one of the two was replaced or "
        "damaged; import the network again, or run its command again"
    )


def _read_arrays(path: Path) -> dict[str, Any] | None:
    """Return the variables in a file; None if it does not exist."""
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        if not path.exists():
            return None
        raise UserError(f"{path} cannot be read ({error}): import the network again") from None
    return models.both_collections(flax.traverse_util.unflatten_dict(arrays, sep=_SEPARATOR))


def what_is_not_a_weight(path: tuple[str, ...], array: np.ndarray) -> str | None:
    """Return in words why an array cannot be a network's: not finite, negative variance; or None.

    Args:
      path: path of the leaf in the variables.
      array: its values, floating point.
    """
    array = np.asarray(array)
    num_wrong = array.size - np.count_nonzero(np.isfinite(array))
    if num_wrong:
        return f"has {num_wrong} of {array.size} values that are not finite"
    if path[-1] == "var" and array.min(initial=0) < 0:
        return f"is a variance and has {array.min()}"
    return None


def check_fit(
    network: models.Network,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    source: str,
) -> None:
    """Raise `UserError` unless the variables have the network's leaves, in float32 and finite."""
    expected_shapes = models.flat_shapes(network, image_shape)
    leaves = flax.traverse_util.flatten_dict(dict(variables))
    problems = [f"missing {'/'.join(path)}" for path in expected_shapes.keys() - leaves.keys()]
    problems += [f"unexpected {'/'.join(path)}" for path in leaves.keys() - expected_shapes.keys()]
    problems += [
        f"{'/'.join(path)} has shape {leaves[path].shape}, expected {expected_shapes[path]}"
        for path in expected_shapes.keys() & leaves.keys()
        if leaves[path].shape != expected_shapes[path]
    ]
    problems += [
        f"{'/'.join(path)} is {array.dtype}, expected float32"
        for path, array in leaves.items()
        if array.dtype != np.float32
    ]
    if problems:
        raise UserError(
            f"{source} does not hold a {network.arch}: {'; '.join(sorted(problems)[:8])}"
        )
    words = {"/".join(path): what_is_not_a_weight(path, leaves[path]) for path in leaves}
    if faults := [f"{name} {text}" for name, text in sorted(words.items()) if text]:
        raise UserError(
            f"the weights in {source} cannot be right: {'; '.join(faults[:8])}; import or train "
            "the network again"
        )
