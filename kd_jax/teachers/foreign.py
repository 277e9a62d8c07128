"""Teachers from outside the zoo: `KIND:WHAT[@FILE]` on the command line, and how they are fitted.

    torch:package.module:factory[@FILE]   a PyTorch module, and its state dict
    timm:NAME[@FILE]                      pretrained, or with the weights in FILE
    torchvision:NAME[@FILE]
    onnx:FILE
    keras:FILE

Code is only ever run where the user names it. Files of weights are read as everywhere else in
kd_jax, so a pickle that could run code is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import catalog
from kd_jax.data import dataset as dataset_lib
from kd_jax.models.function_network import FunctionNetwork
from kd_jax.models.preprocessing import Preprocessing
from kd_jax.runtime import paths
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, in_short
from kd_jax.teachers import heads
from kd_jax.teachers.teacher import ForeignNetwork, HostNetwork, Teacher
from kd_jax.weights import saved_network

# What is imported for each kind, and what installs it.
PACKAGES = {
    "torch": ("torch", "torch"),
    "timm": ("timm", "timm"),
    "torchvision": ("torchvision", "torchvision"),
    "onnx": ("onnxruntime", "onnxruntime"),
    "keras": ("keras", "'kd_jax[tfds]'"),
}
assert set(PACKAGES) == set(paths.LIBRARIES)
PYTHON = "python"  # kind of a teacher that was given as an object


def split(place: str) -> tuple[str, str, str]:
    """Return kind, what and file of `KIND:WHAT[@FILE]`; an empty kind for a path."""
    kind, colon, rest = place.partition(":")
    if not colon or kind not in (*PACKAGES, PYTHON):
        return "", place, ""
    if kind in ("onnx", "keras"):
        return kind, rest, rest
    what, _, file = rest.partition("@")
    return kind, what, file


def is_foreign(place: str) -> bool:
    """Tell whether a value of `teacher.weights` names a network from outside the zoo."""
    return bool(split(place)[0])


def load(place: str, num_classes: int | None) -> ForeignNetwork:
    """Return the network that a text names.

    Args:
      place: `KIND:WHAT[@FILE]`.
      num_classes: of the data set; None if only its images tell.

    Raises:
      UserError: its package is missing, there is no such network or file, or it does not fit.
    """
    kind, what, file = split(place)
    if kind == PYTHON:
        raise UserError(
            f"config.teacher.weights is {place}, a teacher that was given as a Python object: call "
            "kd_jax.distill with it again, or name one on disk"
        )
    if not what:
        raise UserError(f"config.teacher.weights is {place!r}: expected a name after {kind}:")
    if kind in ("onnx", "keras"):
        from kd_jax.teachers import file_teachers

        return getattr(file_teachers, kind)(place, what)
    from kd_jax.teachers import torch_teachers

    return torch_teachers.load(kind, what, file, num_classes)


def package(kind: str) -> ModuleType:
    """Return the imported package of a kind.

    Raises:
      UserError: it is missing.
    """
    name, requirement = PACKAGES[kind]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"a teacher {kind}:... needs the package {name}, which cannot be imported ({error}): "
            f"pip install {requirement}"
        ) from None


def card_of(network: ForeignNetwork, options: ConfigDict, dataset: str) -> saved_network.ModelCard:
    """Return the card of a network; its normalisation is empty where only the data tell.

    Args:
      network: as it was loaded.
      options: `config.teacher`.
      dataset: name of the data set, without a version.
    """
    preprocessing: tuple[Any, ...] = (options.channels, options.input_size or network.input_size)
    preprocessing += (options.crop_fraction,) if options.crop_fraction else ()
    digest = hashlib.sha256(f"{network.digest} {preprocessing}".encode()).hexdigest()
    facts = catalog.facts(dataset)
    mean, std = network.mean or facts.mean or (), network.std or facts.std or ()
    return saved_network.ModelCard(
        arch=network.name,
        num_classes=0,
        image_shape=(0, 0, 3),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        dataset=dataset,
        claimed_top1=network.claimed_top1,
        source=network.source,
        sha256=network.digest,
        arrays_sha256=digest,
        class_names=network.class_names,
    )


def teacher_of(
    network: ForeignNetwork, card: saved_network.ModelCard, options: ConfigDict
) -> Teacher:
    """Return the teacher that a network is under the normalisation of its card.

    Raises:
      UserError: it takes images of any size, and they are to be cropped to one.
    """
    channels = network.channels if options.channels == "own" else options.channels
    size = options.input_size or network.input_size
    if options.crop_fraction and not size:
        raise UserError(
            f"config.teacher.crop_fraction is {options.crop_fraction:g}, expected 0: the teacher "
            f"{network.name} names no size of its images; or set config.teacher.input_size"
        )
    preprocessing = Preprocessing(card.mean, card.std, channels, size, options.crop_fraction)
    if network.apply is not None:
        function = FunctionNetwork(network.name, network.apply, preprocessing)
        return Teacher(card, function, network.variables, foreign=network)
    assert network.call is not None
    host = HostNetwork(network.name, network.call, preprocessing)
    return Teacher(card, None, None, host, network)


def fit(
    teacher: Teacher, options: ConfigDict, dataset: dataset_lib.DataSet, names: heads.Names
) -> Teacher:
    """Return a teacher whose outputs are the classes of a data set, in the order of its labels.

    It is asked about two black images, which tells how many outputs it has.

    Args:
      teacher: from outside the zoo.
      options: `config.teacher`.
      dataset: the data set to teach.
      names: names of its classes; None if unknown.

    Raises:
      UserError: it fails, or has other classes.
    """
    network = teacher.foreign
    assert network is not None
    card = dataclasses.replace(
        teacher.card,
        image_shape=dataset.image_shape,
        mean=teacher.card.mean or dataset.mean,
        std=teacher.card.std or dataset.std,
    )
    whole = teacher_of(network, card, options)
    card = dataclasses.replace(card, num_classes=_outputs_of(whole, dataset.image_shape))
    indices = heads.outputs(card, names, dataset.num_classes, dataset.name)
    if indices is not None:
        logger.warning(
            "the teacher %s knows %d classes: its outputs for the %d of %s are taken",
            card.arch, card.num_classes, dataset.num_classes, dataset.name,
        )  # fmt: skip
        digest = hashlib.sha256(f"{card.arrays_sha256} {indices}".encode()).hexdigest()
        card = dataclasses.replace(
            card,
            num_classes=dataset.num_classes,
            class_names=names,
            claimed_top1=None,
            arrays_sha256=digest,
        )
    outputs = None if indices is None else tuple(indices)
    if whole.host is not None:
        return dataclasses.replace(
            whole, card=card, host=dataclasses.replace(whole.host, outputs=outputs)
        )
    assert isinstance(whole.network, FunctionNetwork)
    return dataclasses.replace(
        whole, card=card, network=dataclasses.replace(whole.network, outputs=outputs)
    )


def count_outputs(
    network: ForeignNetwork, image_shape: tuple[int, int, int], input_size: int
) -> int:
    """Return the number of outputs of a network for images of a shape.

    Raises:
      UserError: it fails for such images, or does not return logits.
    """
    card = saved_network.ModelCard(
        network.name, 0, image_shape, (0.5,) * 3, (0.5,) * 3, "", None, network.source, ""
    )
    options = ConfigDict({"channels": "own", "input_size": input_size, "crop_fraction": 0.0})
    return _outputs_of(teacher_of(network, card, options), image_shape)


def _outputs_of(teacher: Teacher, image_shape: tuple[int, int, int]) -> int:
    """Return the number of outputs of a network.

    Raises:
      UserError: it fails for such images, or does not return logits.
    """
    pixels = jnp.zeros((2, *image_shape))
    name = teacher.card.arch
    if teacher.host is not None:
        return teacher.host.logits(np.asarray(teacher.host.preprocessing(pixels))).shape[1]
    network = teacher.network
    assert network is not None
    logits = _shape_of(lambda x: network.logits(teacher.variables, x), pixels, name)
    if len(logits.shape) != 2 or logits.shape[0] != 2:
        raise UserError(
            f"the teacher {name} returns an array of shape {logits.shape} for 2 images: expected "
            "logits of shape (2, classes)"
        )
    return int(logits.shape[1])


def _shape_of(function: Callable[[Any], Any], pixels: jax.Array, name: str) -> Any:
    try:
        return jax.eval_shape(function, pixels)
    except Exception as error:  # whatever a user's function raises
        text = in_short(error, 300)
        raise UserError(
            f"the teacher {name} fails with {type(error).__name__} for images of shape "
            f"{pixels.shape}: {text}"
        ) from error
