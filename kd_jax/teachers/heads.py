"""Select the outputs of a network that are the classes of a data set, by the names of the classes.

A network has one output per class that it was trained on, in the order of its training. Only the
names of the classes show whether that is the order of the data's labels.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from kd_jax import models
from kd_jax.data import arrays, catalog
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.weights import saved_network

Names = tuple[str, ...] | None
_MOST_SHOWN = 3


class OtherClassesError(UserError):
    """A network does not know the classes of a data set, by their names or their number."""

    def as_teacher(self, card: saved_network.ModelCard, place: str, dataset_name: str) -> UserError:
        """Return the error with the way to a teacher of these classes that keeps the body.

        Args:
          card: of the network.
          place: that a config names it by.
          dataset_name: name of the data set to teach.
        """
        if dataset_name == arrays.NAME:  # which no command can name
            return self
        own = catalog.facts(dataset_name).own_teacher or (
            f"configs/teacher.py:{card.arch} --config.dataset.name={dataset_name}"
        )
        return UserError(
            f"{self}; or train a teacher of these classes from it first, with --config={own} "
            f"--config.student.arch={card.arch} --config.student.weights={place}, and distil from "
            "that run, --config.teacher.weights=WORKDIR"
        )


def names_of(card: saved_network.ModelCard) -> Names:
    """Return the names of a network's outputs; None if they are unknown."""
    names = card.class_names or catalog.facts(card.dataset).class_names
    return names if names is not None and len(names) == card.num_classes else None


def outputs(
    card: saved_network.ModelCard, names: Names, num_classes: int, dataset_name: str
) -> list[int] | None:
    """Return the index of the network's output for each class of a data set.

    Args:
      card: card of the network.
      names: names of the data set's classes, in the order of its labels; None if unknown.
      num_classes: number of classes of the data set.
      dataset_name: name of the data set, for messages.

    Returns:
      a list of `num_classes` indices; None if outputs and classes are the same already.

    Raises:
      UserError: the network has other classes, or the same classes in another order.
    """
    output_names = names_of(card)
    if output_names is None or names is None:
        if card.num_classes == num_classes:
            return None
        raise OtherClassesError(
            f"the network {card.source} knows {card.num_classes} classes, but {dataset_name} has "
            f"{num_classes}: take one of the same data set (a part of its classes is found by "
            "their names, which are not known of both: import it with --class_names)"
        )
    plain_outputs = [_plain(name) for name in output_names]
    plain_names = [_plain(name) for name in names]
    if plain_outputs == plain_names:
        return None
    if set(plain_names) < set(plain_outputs) and len(set(plain_outputs)) == len(plain_outputs):
        return [plain_outputs.index(name) for name in plain_names]
    if sorted(plain_names) == sorted(plain_outputs):
        pairs = [(n, a, b) for n, (a, b) in enumerate(zip(output_names, names, strict=True))
                 if _plain(a) != _plain(b)]  # fmt: skip
        raise UserError(
            f"the network {card.source} has the classes of {dataset_name} in another order "
            f"({_listed([f'{n} is {a} for it and {b} in the data' for n, a, b in pairs])}): name "
            "the classes so that their order is that of its training"
        )
    unknown = [name for name in names if _plain(name) not in plain_outputs]
    unused = [name for name in output_names if _plain(name) not in plain_names]
    raise OtherClassesError(
        f"the network {card.source} knows other classes than {dataset_name}: it does not know "
        f"{_listed(unknown)}, and {_listed(unused)} of it {'are' if len(unused) > 1 else 'is'} "
        "not in the data; expected the classes of its training, under their names, or a part of "
        "them"
    )


def fit(
    card: saved_network.ModelCard, variables: Any, names: Names, num_classes: int, dataset_name: str
) -> tuple[saved_network.ModelCard, Any]:
    """Return a network whose outputs are the classes of a data set, in the order of its labels.

    If the network has more classes, their columns are removed from the last layer; the other logits
    stay the same. The new card has no claimed accuracy and no certificate.

    Arguments and errors as for `outputs`; `variables` are the network's.
    """
    indices = outputs(card, names, num_classes, dataset_name)
    if indices is None:
        if names is not None and names_of(card) is None:
            logger.warning(
                "the network %s does not name its classes: its %d outputs are taken for those of "
                "%s in the order of their labels; import it with --class_names to have them "
                "compared",
                card.source, num_classes, dataset_name,
            )  # fmt: skip
        return card, variables
    logger.warning(
        "the network %s knows %d classes: its outputs for the %d of %s are taken",
        card.source, card.num_classes, num_classes, dataset_name,
    )  # fmt: skip
    flat = flax.traverse_util.flatten_dict(variables, keep_empty_nodes=True)
    for path in _head(card):
        flat[path] = np.ascontiguousarray(np.asarray(flat[path])[..., indices])
    variables = flax.traverse_util.unflatten_dict(flat)
    card = dataclasses.replace(
        card,
        num_classes=num_classes,
        class_names=names,
        claimed_top1=None,
        certificate=None,
        arrays_sha256=saved_network.digest_of(variables),
    )
    return card, variables


def fit_start(
    card: saved_network.ModelCard,
    variables: Any,
    names: Names,
    num_classes: int,
    dataset_name: str,
    seed: int,
    freeze: str = "",
) -> tuple[saved_network.ModelCard, Any]:
    """Return a network to start training from, with the classes of a data set as outputs.

    If it knows them, as `fit`. Otherwise its body is kept, and its head is drawn anew as that of a
    fresh network of this seed. Then the new card has no claimed accuracy and no certificate.

    Args:
      card: card of the network.
      variables: of the network.
      names: names of the data set's classes, in the order of its labels; None if unknown.
      num_classes: number of classes of the data set.
      dataset_name: name of the data set.
      seed: of the student's first values.
      freeze: `config.student.freeze`.

    Raises:
      UserError: the head is new, and would be frozen as it was drawn.
    """
    if _knows(card, names, num_classes, dataset_name):
        return fit(card, variables, names, num_classes, dataset_name)
    head = _head(card)
    drawn_names = ["/".join(path[1:]) for path in head]
    if frozen := [name for name in drawn_names if freeze and re.search(freeze, name)]:
        raise UserError(
            f"config.student.freeze is {freeze!r}, which finds {' and '.join(frozen)}: that head "
            f"is new, since the network {card.source} knows other classes than {dataset_name}, and "
            "frozen it would stay as it was drawn; expected an expression that leaves it out"
        )
    logger.warning(
        "of the network %s the body is kept: its head of %d classes of %s is replaced by a new one "
        "of %d classes of %s",
        *(card.source, card.num_classes, card.dataset, num_classes, dataset_name),
    )
    new_card = dataclasses.replace(
        card, num_classes=num_classes, class_names=names, claimed_top1=None, certificate=None
    )
    drawn = flax.traverse_util.flatten_dict(new_card.network().init(seed, card.image_shape))
    flat = flax.traverse_util.flatten_dict(variables, keep_empty_nodes=True)
    flat |= {path: drawn[path] for path in head}
    variables = flax.traverse_util.unflatten_dict(flat)
    return dataclasses.replace(
        new_card, arrays_sha256=saved_network.digest_of(variables)
    ), variables


def _knows(
    card: saved_network.ModelCard, names: Names, num_classes: int, dataset_name: str
) -> bool:
    """Return whether a network has an output for each class of a data set."""
    if (names is None or names_of(card) is None) and card.dataset != dataset_name:
        return False  # as many classes, of which nobody can tell whether they are the same
    try:
        outputs(card, names, num_classes, dataset_name)
    except UserError:
        return False
    return True


def _head(card: saved_network.ModelCard) -> list[tuple[str, ...]]:
    """Return the paths of the arrays whose last axis is the classes."""
    wider_card = dataclasses.replace(card, num_classes=card.num_classes + 1)
    shapes = models.flat_shapes(card.network(), card.image_shape)
    wider_shapes = models.flat_shapes(wider_card.network(), card.image_shape)
    return [path for path in shapes if shapes[path] != wider_shapes[path]]


def _plain(name: str) -> str:
    """Return the normal form of a name: Unicode NFC, and a space for each `_` (tfds writes `_`)."""
    return unicodedata.normalize("NFC", name).replace("_", " ")


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MOST_SHOWN} more" if len(items) > _MOST_SHOWN else ""
    return (", ".join(items[:_MOST_SHOWN]) or "nothing") + more
