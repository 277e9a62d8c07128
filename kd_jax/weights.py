"""A network on disk: `model.json` (what it is) beside `model.safetensors` (its variables).

The same two files are written by `import_teacher` and by every finished run, so either directory
can be a teacher. safetensors holds raw arrays and nothing that can run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from kd_jax import files, models
from kd_jax.errors import UserError

CARD_FILE = "model.json"
ARRAYS_FILE = "model.safetensors"
_SEPARATOR = "/"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a stored network is.

    Attributes:
      arch: name in the zoo.
      num_classes: width of its head.
      image_shape: `(H, W, C)` it was made for.
      mean, std: its own normalisation of pixels in [0, 1].
      dataset: what it was trained on.
      claimed_top1: percent on that data set's test split; None if nobody claims any.
      source: the file or run that it came from.
      sha256: of that file, or of the stored arrays.
      certificate: what the run that trained it measured on the test split (percent, nats, number of
        examples, fingerprint of the data); None for imported weights.
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

    def network(self, dtype: str = "float32") -> models.Network:
        """Return the network that the variables belong to, see `models.build`."""
        return models.build(self.arch, self.num_classes, self.mean, self.std, dtype=dtype)


def save(directory: str | Path, card: ModelCard, variables: Mapping[str, Any]) -> None:
    """Write a network into a directory, each file whole or not at all."""
    directory = Path(directory)
    flat = flax.traverse_util.flatten_dict(dict(variables), sep=_SEPARATOR)
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    files.write_whole(directory / ARRAYS_FILE, safetensors.numpy.save(arrays))
    files.write_json(directory / CARD_FILE, dataclasses.asdict(card))


def digest_of(variables: Mapping[str, Any]) -> str:
    """Return the hex sha256 of variables: of every leaf's path and bytes, in order of the paths."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flax.traverse_util.flatten_dict(dict(variables), sep="/").items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def load_card(directory: str | Path) -> ModelCard:
    """Return the card of a stored network.

    Raises:
      UserError: the directory holds no such card, or a damaged one.
    """
    path = Path(directory) / CARD_FILE
    try:
        fields = json.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(ModelCard)}
        card = ModelCard(**{key: value for key, value in fields.items() if key in known})
        height, width, channels = card.image_shape
        return dataclasses.replace(
            card,
            image_shape=(height, width, channels),
            mean=tuple(card.mean),
            std=tuple(card.std),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the card of a stored network ({error}): expected a directory made by "
            "import_teacher or by a finished run"
        ) from None


def load(directory: str | Path) -> tuple[ModelCard, dict[str, Any]]:
    """Return a stored network's card and variables.

    Raises:
      UserError: files missing or damaged, or arrays that do not fit the card's architecture.
    """
    directory = Path(directory)
    card = load_card(directory)
    try:
        arrays = safetensors.numpy.load_file(directory / ARRAYS_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{directory / ARRAYS_FILE} cannot be read ({error}): import the network again"
        ) from None
    variables = models.both_collections(flax.traverse_util.unflatten_dict(arrays, sep=_SEPARATOR))
    check_fit(card.network(), variables, card.image_shape, str(directory))
    return card, variables


def check_fit(
    network: models.Network,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    source: str,
) -> None:
    """Raise `UserError` unless the variables have exactly the network's leaves and shapes."""
    expected = models.flat_shapes(network, image_shape)
    given = flax.traverse_util.flatten_dict(dict(variables))
    problems = [f"missing {'/'.join(path)}" for path in expected.keys() - given.keys()]
    problems += [f"unexpected {'/'.join(path)}" for path in given.keys() - expected.keys()]
    problems += [
        f"{'/'.join(path)} has shape {given[path].shape}, expected {expected[path]}"
        for path in expected.keys() & given.keys()
        if given[path].shape != expected[path]
    ]
    if problems:
        raise UserError(
            f"{source} does not hold a {network.arch}: {'; '.join(sorted(problems)[:8])}"
        )
