"""Teachers: loaded from wherever they are, frozen, with the outputs that the data set asks for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax import models
from kd_jax.config import checks
from kd_jax.data import class_names
from kd_jax.data import dataset as dataset_lib
from kd_jax.distill.ensemble import Ensemble
from kd_jax.models import zoo
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import heads
from kd_jax.teachers.heads import Names
from kd_jax.weights import published, saved_network, state_files, torch_import

HALF = (0.5, 0.5, 0.5)  # the study's code normalises every network's pixels by this mean and std


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network: what it is, how to apply it, and its variables."""

    card: saved_network.ModelCard
    network: models.Network
    variables: Any


@dataclasses.dataclass(frozen=True)
class Teachers:
    """All teachers of a run, and how they speak together."""

    members: tuple[Teacher, ...]
    ensemble: Ensemble

    @property
    def variables(self) -> tuple[Any, ...]:
        """Of each member."""
        return tuple(member.variables for member in self.members)

    @property
    def arch(self) -> str:
        """The members' architectures, joined by `+`."""
        return "+".join(member.card.arch for member in self.members)

    @property
    def sha256(self) -> str:
        """Of the weights; of several, the hash of their hashes."""
        hashes = [member.card.sha256 for member in self.members]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )

    @property
    def identity(self) -> str:
        """Hash of all that their logits depend on: arrays, architectures, normalisations."""
        cards = [member.card for member in self.members]
        parts = [(card.arrays_sha256, card.arch, card.mean, card.std) for card in cards]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def load(options: ConfigDict, dataset_name: str) -> Teachers:
    """Load the teachers that `config.teacher` names; the data itself is not needed.

    Args:
      options: `config.teacher`.
      dataset_name: which the teachers must have been made for, without a version.

    Raises:
      UserError: weights are not there, not readable, or not this network's; or a teacher is there
        twice.
    """
    members = []
    for path, arch in [(options.weights, options.arch), *((path, "") for path in options.ensemble)]:
        card, variables = read(path, arch, dataset_name)
        if options.normalisation == "half":
            card = dataclasses.replace(card, mean=HALF, std=HALF)
        members.append((card, variables))
    its = _together(members, options)
    _check_different(its.members)
    return its


def _together(
    members: Sequence[tuple[saved_network.ModelCard, Any]], options: ConfigDict
) -> Teachers:
    its = [Teacher(card, card.network(options.dtype), own) for card, own in members]
    shares = options.shares or (1,) * len(its)
    ensemble = Ensemble(
        networks=tuple(member.network for member in its),
        shares=tuple(share / sum(shares) for share in shares),
        combine=options.combine,
    )
    return Teachers(tuple(its), ensemble)


def fit(its: Teachers, options: ConfigDict, dataset: dataset_lib.DataSet, names: Names) -> Teachers:
    """Return the teachers with the outputs that a data set asks for, see `heads.fit`.

    Args:
      its: as loaded.
      options: `config.teacher`.
      dataset: that they shall teach.
      names: of its classes; None where nobody knows them.

    Raises:
      UserError: a teacher knows other classes, or is for images of another size.
    """
    members = []
    for member in its.members:
        check_images(member.card, dataset.name, dataset.image_shape)
        members.append(
            heads.fit(member.card, member.variables, names, dataset.num_classes, dataset.name)
        )
    return _together(members, options)


def _check_different(members: Sequence[Teacher]) -> None:
    """Raise `UserError` if a teacher is there twice, under whatever path."""
    first: dict[Any, Teacher] = {}
    for member in members if len(members) > 1 else ():
        key = member.card.arrays_sha256, member.card.mean, member.card.std
        if key in first:
            raise UserError(
                f"the teachers {first[key].card.source} and {member.card.source} of "
                "config.teacher.weights and config.teacher.ensemble are the same network: name "
                "each once, and give it more weight with config.teacher.shares"
            )
        first[key] = member


def read(
    source: str, arch: str, dataset_name: str, field: str = "config.teacher"
) -> tuple[saved_network.ModelCard, Any]:
    """Return the card and the variables of one network.

    Args:
      source: a file of weights, a directory made by `import_teacher`, or the workdir of a finished
        run.
      arch: what it must be; a file needs it, for a directory it may be empty.
      dataset_name: what it must have been made for.
      field: the part of the config that names it, for what is said when it does not fit.

    Raises:
      UserError: it is not there, not readable, or something else.
    """
    path = reachable(source, f"{field}.weights")
    if not path.exists():
        raise UserError(
            f"no network at {source}: expected {field}.weights to be a file of weights, a "
            "directory made by import_teacher, or the workdir of a finished run; "
            f"{checks.ways_to_a_teacher(arch, dataset_name)}"
        )
    if path.is_file():
        state_files.check(path)
        if not arch:
            raise UserError(
                f"{field}.arch is empty, expected the architecture of {path}: the file does not "
                f"name it; one of {', '.join(zoo.NAMES)}"
            )
        card, variables = import_file(arch, path, dataset_name)
    else:
        if not (path / saved_network.CARD_FILE).exists() and (path / "config.json").exists():
            raise UserError(
                f"the run in {path} is not finished, so it has no network to give: run its command "
                "again until it ends"
            )
        card, variables = saved_network.load(path)
    if arch and card.arch != arch:
        raise UserError(f"{field}.arch is {arch}, but {path} holds a {card.arch}: change one")
    if dataset_name in dataset_lib.NUM_CLASSES:
        names = class_names.NAMES.get(dataset_name)
        heads.outputs(card, names, dataset_lib.NUM_CLASSES[dataset_name], dataset_name)
    return card, variables


def check_images(
    card: saved_network.ModelCard, dataset_name: str, image_shape: tuple[int, int, int]
) -> None:
    """Raise `UserError` unless a network's weights are right for images of this shape."""
    network = card.network()
    if models.flat_shapes(network, card.image_shape) != models.flat_shapes(network, image_shape):
        raise UserError(
            f"the network {card.source} is for images of {card.image_shape[0]} x "
            f"{card.image_shape[1]} pixels, but those of {dataset_name} have {image_shape[0]} x "
            f"{image_shape[1]}: set config.dataset.image_size, or take another network"
        )


def import_file(
    arch: str,
    path: Path,
    dataset_name: str,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    num_classes: int | None = None,
    image_size: int = dataset_lib.IMAGE_SHAPE[0],
    key: str = "",
    names: Names = None,
) -> tuple[saved_network.ModelCard, dict[str, Any]]:
    """Return the card and the Flax variables of a network in a file of PyTorch-named weights.

    A file of an architecture whose weights are published claims their published accuracy, until
    somebody says otherwise: a run that uses it measures it. With other classes than those of the
    data set it claims nothing.

    Args:
      arch: name in the zoo.
      path: of the file.
      dataset_name: what it was trained on; gives its classes, and its normalisation by default.
      normalisation: mean and std of pixels in [0, 1], one value a channel.
      num_classes: where the data set is not one that is known by name.
      image_size: pixels a side.
      key: of the wanted weights, where the file holds several sets, see `state_dicts.choose`.
      names: of its classes, in the order of its outputs; by default those of the data set.

    Raises:
      UserError: the file or the architecture is not what it should be.
    """
    normalisation = normalisation or dataset_lib.NORMALISATION.get(dataset_name)
    num_classes = num_classes or dataset_lib.NUM_CLASSES.get(dataset_name)
    if normalisation is None or num_classes is None:
        raise UserError(
            f"the classes and the normalisation of networks for {dataset_name} are not known: "
            f"import {path} with kd_jax.import_teacher and --num_classes, --mean and --std"
        )
    network = models.build(arch, num_classes, *normalisation)
    state_dict = state_files.read(path, key)
    image_shape = (image_size, image_size, 3)
    variables = torch_import.from_state_dict(network, state_dict, image_shape)
    of_dataset = class_names.NAMES.get(dataset_name)
    # A network with another number of classes was not trained on that data set as it is.
    is_whole = network.num_classes == dataset_lib.NUM_CLASSES.get(dataset_name)
    names = names or (of_dataset if is_whole else None)
    entry = published.TABLE.get((dataset_name, arch)) if is_whole and names == of_dataset else None
    card = saved_network.ModelCard(
        arch=arch,
        num_classes=network.num_classes,
        image_shape=image_shape,
        mean=network.mean,
        std=network.std,
        dataset=dataset_name,
        claimed_top1=entry.top1 if entry else None,
        source=path.name,
        sha256=atomic_files.sha256_of(path),
        arrays_sha256=saved_network.digest_of(variables),
        class_names=names,
    )
    return card, variables
