"""The student of a run: what it is, what it starts from, what of it is frozen."""

from __future__ import annotations

import dataclasses
import re

from ml_collections import ConfigDict

from kd_jax import models
from kd_jax.data import catalog
from kd_jax.data import dataset as dataset_lib
from kd_jax.models import quantize, user_module
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import heads, load
from kd_jax.training import length
from kd_jax.training.given import Given
from kd_jax.weights import saved_network

Start = tuple[saved_network.ModelCard, models.Variables]  # a network to start from


def read_start(config: ConfigDict, dataset: str) -> Start | None:
    """Return the network that the student starts from; None where it is drawn from the seed.

    Args:
      config: of the run.
      dataset: name of its data set, without a version.

    Raises:
      UserError: see `load.read`.
    """
    options = config.student
    if not options.weights:
        return None
    return _in_floats(*load.read(options.weights, options.arch, dataset, "config.student"))


def fit_start(
    config: ConfigDict,
    start: Start,
    dataset: dataset_lib.DataSet,
    class_names: tuple[str, ...] | None,
) -> Start:
    """Return the network that the student starts from, with a head for the data's classes."""
    load.check_images(start[0], dataset.name, dataset.image_shape)
    seed, freeze = init_seed(config), config.student.freeze
    return heads.fit_start(
        *start, class_names, dataset.num_classes, dataset.name, seed, freeze=freeze
    )


def build(
    config: ConfigDict,
    dataset: dataset_lib.DataSet,
    start: saved_network.ModelCard | None,
    given: Given,
) -> models.Network:
    """Return the network that is trained, with its normalisation and its frozen norms."""
    options = config.student
    mean, std = (start.mean, start.std) if start else (dataset.mean, dataset.std)
    if options.normalisation == "half":
        mean, std = catalog.NORMALISATIONS["half"]
    axis_name = devices_lib.AXIS if config.batch_norm.sync else None
    student: models.Network
    if given.student is None:
        student = models.build(
            options.arch,
            dataset.num_classes,
            mean,
            std,
            axis_name=axis_name,
            dropout_rate=options.dropout,
            dtype=options.dtype,
        )
    else:
        student = user_module.wrap(
            given.student,
            num_classes=dataset.num_classes,
            mean=mean,
            std=std,
            axis_name=axis_name,
            image_shape=dataset.image_shape,
        )
    _check_freeze(options.freeze, student, dataset.image_shape)
    kept = frozen_norms(options.freeze, student, dataset.image_shape)
    return dataclasses.replace(student, kept_norms=kept)


def check_quantized(
    config: ConfigDict,
    student: models.Network,
    image_shape: tuple[int, int, int],
    total_steps: int,
    *,
    has_start: bool,
) -> None:
    """Raise `UserError` if the student cannot be trained for int8 as the config asks."""
    if config.student.quantize == "none":
        return
    student.check_quantized(image_shape)
    if not has_start and length.quantize_from(config, total_steps) == 0:
        raise UserError(
            f"config.student.quantize_share is {config.student.quantize_share}, which is all of "
            f"the {total_steps} steps: without config.student.weights at least one must come "
            "before, because batch norm keeps the running statistics that it has when rounding "
            "begins"
        )


def frozen_norms(
    pattern: str, student: models.Network, image_shape: tuple[int, int, int]
) -> frozenset[str]:
    """Return the paths of the batch norms that `config.student.freeze` freezes.

    Those all of whose parameters it finds. Their running statistics belong to the frozen weights:
    they stay, and are what the norm goes by, in training too.
    """
    if not pattern:
        return frozenset()
    shapes = models.flat_shapes(student, image_shape)
    params = {path[1:] for path in shapes if path[0] == "params"}
    free = {path[:-1] for path in params if not re.search(pattern, "/".join(path))}
    norms = {path[1:-1] for path in shapes if path[0] == "batch_stats"}
    return frozenset("/".join(norm) for norm in norms & {path[:-1] for path in params} - free)


def init_seed(config: ConfigDict) -> int:
    """Return the seed of the student's first values."""
    chosen: int | None = config.student.init_seed
    return config.seed if chosen is None else chosen


def _in_floats(
    card: saved_network.ModelCard, variables: models.Variables
) -> tuple[saved_network.ModelCard, models.Variables]:
    """Return a network to start from, without ranges: a run measures its own."""
    return dataclasses.replace(card, quantize="none"), quantize.without_ranges(variables)


def _check_freeze(pattern: str, student: models.Network, image_shape: tuple[int, int, int]) -> None:
    """Raise `UserError` if `config.student.freeze` finds no parameter, or all of them."""
    names = ["/".join(p[1:]) for p in models.flat_shapes(student, image_shape) if p[0] == "params"]
    found = sum(bool(re.search(pattern, name)) for name in names)
    if pattern and not 0 < found < len(names):
        raise UserError(
            f"config.student.freeze is {pattern!r}, which finds {found} of the {len(names)} "
            f"parameters of {student.arch}: expected some and not all, such as {names[0]}"
        )
