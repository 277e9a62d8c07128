"""Fit a network to the classes of a data set, by their names.

A network gives a number for each class that it was trained on, in its own order. Whether that is
the order of the data's labels only the names of the classes tell.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from kd_jax import models
from kd_jax.data import class_names
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.weights import saved_network

Names = tuple[str, ...] | None
_MOST_SHOWN = 3


def names_of(card: saved_network.ModelCard) -> Names:
    """Return the names of a network's outputs; None where nobody knows them."""
    own = card.class_names or class_names.NAMES.get(card.dataset)
    return own if own is not None and len(own) == card.num_classes else None


def outputs(
    card: saved_network.ModelCard, names: Names, num_classes: int, dataset_name: str
) -> list[int] | None:
    """Return which of a network's outputs are the classes of a data set, in their order.

    Args:
      card: of the network.
      names: of the data set's classes, in the order of its labels; None where nobody knows them.
      num_classes: of the data set.
      dataset_name: for what is said.

    Returns:
      None if it is all of them as they are.

    Raises:
      UserError: it knows other classes, or the same in another order.
    """
    own = names_of(card)
    if own is None or names is None:
        if card.num_classes == num_classes:
            return None
        raise UserError(
            f"the network {card.source} knows {card.num_classes} classes, but {dataset_name} has "
            f"{num_classes}: take one of the same data set (a part of its classes is found by "
            "their names, which are not known of both: import it with --class_names)"
        )
    theirs, wanted = [_plain(name) for name in own], [_plain(name) for name in names]
    if theirs == wanted:
        return None
    if set(wanted) < set(theirs) and len(set(theirs)) == len(theirs):
        return [theirs.index(name) for name in wanted]
    if sorted(wanted) == sorted(theirs):
        pairs = [(n, a, b) for n, (a, b) in enumerate(zip(own, names, strict=True))
                 if _plain(a) != _plain(b)]  # fmt: skip
        raise UserError(
            f"the network {card.source} has the classes of {dataset_name} in another order "
            f"({_listed([f'{n} is {a} for it and {b} in the data' for n, a, b in pairs])}): name "
            "the classes so that their order is that of its training"
        )
    strange = [name for name in names if _plain(name) not in theirs]
    missing = [name for name in own if _plain(name) not in wanted]
    raise UserError(
        f"the network {card.source} knows other classes than {dataset_name}: it does not know "
        f"{_listed(strange)}, and {_listed(missing)} of it {'are' if len(missing) > 1 else 'is'} "
        "not in the data; expected the classes of its training, under their names, or a part of "
        "them"
    )


def fit(
    card: saved_network.ModelCard, variables: Any, names: Names, num_classes: int, dataset_name: str
) -> tuple[saved_network.ModelCard, Any]:
    """Return a network that has the outputs of a data set and no others, in its order.

    Of a network that knows more classes the others are taken out of the last layer, so that its
    logits of the rest stay the same. Then nobody claims anything of it any more.

    Arguments and errors as `outputs`; `variables` are the network's.
    """
    chosen = outputs(card, names, num_classes, dataset_name)
    if chosen is None:
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
        flat[path] = np.ascontiguousarray(np.asarray(flat[path])[..., chosen])
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


def _head(card: saved_network.ModelCard) -> list[tuple[str, ...]]:
    """Return the paths of the arrays that have one column a class."""
    other = dataclasses.replace(card, num_classes=card.num_classes + 1)
    own, wider = (models.flat_shapes(one.network(), card.image_shape) for one in (card, other))
    return [path for path in own if own[path] != wider[path]]


def _plain(name: str) -> str:
    """Return a name so that two spellings of it are equal: tfds writes `_` for a space."""
    return unicodedata.normalize("NFC", name).replace("_", " ")


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MOST_SHOWN} more" if len(items) > _MOST_SHOWN else ""
    return (", ".join(items[:_MOST_SHOWN]) or "nothing") + more
