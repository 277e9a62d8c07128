"""Load teachers from files, directories, runs or other libraries, and fit them to the data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from kd_jax import models
from kd_jax.config import checks
from kd_jax.data import catalog
from kd_jax.data import dataset as dataset_lib
from kd_jax.models import zoo
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import foreign, heads, teacher
from kd_jax.teachers.heads import Names
from kd_jax.teachers.teacher import ForeignNetwork, Teacher, Teachers
from kd_jax.weights import published, saved_network, state_files, torch_import

_Draft = tuple[saved_network.ModelCard, Any]  # a card, and variables or a `ForeignNetwork`


def load(
    options: ConfigDict,
    dataset_name: str,
    objects: Mapping[str, ForeignNetwork] = MappingProxyType({}),
) -> Teachers:
    """Load the teachers of `config.teacher`, without reading the data set.

    Args:
      options: `config.teacher`.
      dataset_name: name of the data set to teach, without a version.
      objects: teachers that were given from Python, by what names them in `options`.

    Raises:
      UserError: weights do not exist, cannot be read, or are of another network; or two teachers
        are the same.
    """
    drafts = []
    for place, arch in [
        (options.weights, options.arch),
        *((path, "") for path in options.ensemble),
    ]:
        card, weights = _draft(place, arch, options, dataset_name, objects)
        if options.normalisation != "own":
            mean, std = catalog.NORMALISATIONS[options.normalisation]
            card = dataclasses.replace(card, mean=mean, std=std)
        drafts.append((card, weights))
    teachers = _combine([_teacher_of(*draft, options) for draft in drafts], options)
    _check_different(teachers.members)
    return teachers


def _draft(
    place: str,
    arch: str,
    options: ConfigDict,
    dataset_name: str,
    objects: Mapping[str, ForeignNetwork],
) -> _Draft:
    if place not in objects and not foreign.is_foreign(place):
        card, variables = read(place, arch, dataset_name)
        facts = catalog.facts(dataset_name)
        if facts.num_classes:
            try:
                heads.outputs(card, facts.class_names, facts.num_classes, dataset_name)
            except heads.OtherClassesError as error:
                raise error.as_teacher(card, place, dataset_name) from None
        return card, variables
    if arch:
        raise UserError(
            f"config.teacher.arch is {arch}, expected none with config.teacher.weights={place}, "
            "which says it itself"
        )
    if options.dtype != "float32":
        raise UserError(
            f"config.teacher.dtype is {options.dtype}, expected float32: the teacher {place} is "
            "not of the zoo and computes in what it was made for"
        )
    network = objects.get(place) or foreign.load(place, catalog.facts(dataset_name).num_classes)
    return foreign.card_of(network, options, dataset_name), network


def _teacher_of(card: saved_network.ModelCard, weights: Any, options: ConfigDict) -> Teacher:
    if isinstance(weights, ForeignNetwork):
        return foreign.teacher_of(weights, card, options)
    if options.channels != "own" or options.input_size or options.crop_fraction:
        raise UserError(
            f"config.teacher.channels is {options.channels}, config.teacher.input_size "
            f"{options.input_size} and config.teacher.crop_fraction {options.crop_fraction:g}: "
            f"expected own, 0 and 0, since {card.source} is a network of the zoo"
        )
    return Teacher(card, card.network(options.dtype), weights)


def _combine(members: Sequence[Teacher], options: ConfigDict) -> Teachers:
    return teacher.combine(members, options.shares, options.combine)


def fit(
    teachers: Teachers, options: ConfigDict, dataset: dataset_lib.DataSet, names: Names
) -> Teachers:
    """Return the teachers with the classes of a data set as outputs, see `heads.fit`.

    Args:
      teachers: the loaded teachers.
      options: `config.teacher`.
      dataset: the data set to teach.
      names: names of its classes; None if unknown.

    Raises:
      UserError: a teacher has other classes, or is for images of another size.
    """
    members = []
    for member, place in zip(teachers.members, (options.weights, *options.ensemble), strict=True):
        if member.foreign is not None:
            members.append(foreign.fit(member, options, dataset, names))
            continue
        check_images(member.card, dataset.name, dataset.image_shape)
        try:
            draft = heads.fit(
                member.card, member.variables, names, dataset.num_classes, dataset.name
            )
        except heads.OtherClassesError as error:
            raise error.as_teacher(member.card, place, dataset.name) from None
        members.append(_teacher_of(*draft, options))
    return _combine(members, options)


def _check_different(members: Sequence[Teacher]) -> None:
    """Raise `UserError` if two teachers have the same arrays and normalisation."""
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
      arch: expected architecture; required for a file, may be empty for a directory.
      dataset_name: name of the data set to train on, without a version; a file is taken to be of
        it. Whether the network knows its classes is not checked here.
      field: section of the config that contains `weights` and `arch`, for messages.

    Raises:
      UserError: it does not exist, cannot be read, or is another network.
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
                f"{field}.weights is {path}, a file, which does not name its architecture: give it "
                f"as {field}.arch, one of {', '.join(zoo.NAMES)}; or import the file first (python "
                "-m kd_jax.import_teacher --src=FILE)"
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
    return card, variables


def check_images(
    card: saved_network.ModelCard, dataset_name: str, image_shape: tuple[int, int, int]
) -> None:
    """Raise `UserError` unless a network's weights have the right shapes for such images."""
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
    image_size: int = catalog.IMAGE_SIZE,
    key: str = "",
    names: Names = None,
) -> tuple[saved_network.ModelCard, dict[str, Any]]:
    """Return the card and the Flax variables of a network in a file of PyTorch-named weights.

    If weights of the architecture are published, the card claims the published accuracy, and a run
    with this teacher measures it. With other classes than those of the data set there is no claim.

    Args:
      arch: name in the zoo.
      path: path of the file.
      dataset_name: name of the data set that it was trained on; gives the defaults of
        `normalisation`, `num_classes` and `names`.
      normalisation: mean and std of pixels in [0, 1], one value per channel.
      num_classes: number of classes; required for an unknown data set.
      image_size: height and width of images, in pixels.
      key: which set of weights, if the file has several, see `state_dicts.choose`.
      names: names of the classes, in the order of the outputs.

    Raises:
      UserError: the file cannot be read, does not fit the architecture, or the data set is unknown
        and classes or normalisation are missing.
    """
    facts = catalog.facts(dataset_name)
    if normalisation is None and facts.mean and facts.std:
        normalisation = facts.mean, facts.std
    num_classes = num_classes or facts.num_classes
    if normalisation is None or num_classes is None:
        raise UserError(
            f"the classes and the normalisation of networks for {dataset_name} are not known: "
            f"import {path} with kd_jax.import_teacher, and --dataset=NAME if it was trained on "
            "one that is known, or else --num_classes, --mean and --std"
        )
    network = models.build(arch, num_classes, *normalisation)
    state_dict = state_files.read(path, key)
    image_shape = (image_size, image_size, 3)
    variables = torch_import.from_state_dict(network, state_dict, image_shape)
    # With another number of classes it was not trained on the unchanged data set.
    is_unchanged = network.num_classes == facts.num_classes
    names = names or (facts.class_names if is_unchanged else None)
    entry = (
        published.TABLE.get((dataset_name, arch))
        if is_unchanged and names == facts.class_names
        else None
    )
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
