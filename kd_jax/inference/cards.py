"""The card beside an exported file (`FILE.card.json`), read back and checked. Imports no JAX."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.data import folder_tree
from kd_jax.export import formats
from kd_jax.runtime.errors import UserError, in_short

_OUTPUTS = ("logits", "probabilities")


class Card(NamedTuple):
    """What a card says of a file to whoever runs it. Each is None where it says nothing.

    Attributes:
      family: of its format, a key of `runtimes.OPENERS`.
      outputs: `logits` or `probabilities`.
      class_names: of its outputs.
      arch: name of its architecture.
      params: number of its parameters.
      top1: accuracy in percent.
      top1_of: what that was measured on, in words.
    """

    family: str | None = None
    outputs: str | None = None
    class_names: tuple[str, ...] | None = None
    arch: str | None = None
    params: int | None = None
    top1: float | None = None
    top1_of: str | None = None


def beside(path: Path, content: bytes) -> Card | None:
    """Return the card of a file; None where there is none.

    Args:
      path: of the file.
      content: of the file.

    Raises:
      UserError: the card is damaged, or that of another file.
    """
    place = path.with_name(f"{path.name}{formats.CARD_ENDING}")
    try:
        given = json.loads(place.read_text(encoding="utf-8"))
        sha256, card = _read(given)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder_tree.shown(str(place))} is not the card of an exported file "
            f"({in_short(error)}): export the file again, or take the card away"
        ) from None
    if sha256 != hashlib.sha256(content).hexdigest():
        raise UserError(
            f"{folder_tree.shown(str(path))} is not the file that the card beside it describes "
            f"(another sha256): export it again, or take {place.name} away"
        )
    return card


def _read(given: Any) -> tuple[str, Card]:
    """Return the sha256 of a card's file, and what it says of it.

    Raises:
      ValueError: it is no card.
    """
    if not isinstance(given, dict):
        raise ValueError(f"it is a {type(given).__name__}, and no object")
    file, network, measures, dataset = (
        _field(given, part, dict, "an object", must=part != "dataset") or {}
        for part in ("file", "network", "measures", "dataset")
    )
    sha256 = _field(file, "sha256", str, "a text", must=True)
    name = _field(file, "format", str, "a text")
    if name is not None and name not in formats.FORMATS:
        raise ValueError(
            f"its format is {name[:60]!r}, expected one of {', '.join(formats.FORMATS)}"
        )
    kind = (_field(given, "outputs", str, "a text") or "").partition(",")[0]
    card = Card(
        family=None if name is None else formats.FORMATS[name].family,
        outputs=kind if kind in _OUTPUTS else None,
        class_names=_class_names(given),
        arch=_field(network, "arch", str, "a text"),
        params=_field(network, "params", int, "a whole number"),
        top1=_field(measures, "top1", (int, float), "a number"),
    )
    if card.top1 is not None and not 0 <= card.top1 <= 100:
        raise ValueError(f"its top1 is {card.top1}, expected a percentage")
    verified, examples = (
        _field(dataset, key, int, "a whole number") for key in ("verified", "examples")
    )
    if verified is None or examples is None:
        return sha256, card
    part = "all" if verified == examples else f"{verified:,} of"
    return sha256, card._replace(top1_of=f"measured on {part} {examples:,} test images")


def _class_names(given: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes, which may be null and may not be missing."""
    if "class_names" not in given:
        raise ValueError("it has no class_names")
    names = _field(given, "class_names", list, "a list of texts")
    if names is None:
        return None
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"one of its class_names is {str(wrong[0])[:60]}, expected a text")
    return tuple(names)


def _field(given: Mapping[str, Any], key: str, kind: Any, expected: str, must: bool = False) -> Any:
    """Return a field of the kind that is expected; None where it is null or missing.

    Raises:
      ValueError: it is of another kind, or must be there and is not.
    """
    value = given.get(key)
    if value is None and not must:
        return None
    is_wrong = not isinstance(value, kind) or isinstance(value, bool)
    if is_wrong or (isinstance(value, float) and not math.isfinite(value)):
        shown = "missing" if key not in given else json.dumps(value)[:60]
        raise ValueError(f"its {key} is {shown}, expected {expected}")
    return value
