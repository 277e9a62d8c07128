"""The types that the schema is written in: `Field`, one entry, and `Range`, an interval."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class Range(NamedTuple):
    """An interval of numbers.

    Attributes:
      low, high: its ends.
      has_low, has_high: whether the ends belong to it.
    """

    low: float
    high: float
    has_low: bool = True
    has_high: bool = True

    def holds(self, value: float) -> bool:
        """Tell whether a number is in the interval; NaN is in none."""
        is_above = value >= self.low if self.has_low else value > self.low
        is_below = value <= self.high if self.has_high else value < self.high
        return is_above and is_below

    def __str__(self) -> str:
        """Return the usual notation, such as `[0, 1)`."""
        left, right = "[" if self.has_low else "(", "]" if self.has_high else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}"


def closed(low: float, high: float) -> Range:
    """Return `[low, high]`."""
    return Range(low, high)


def left_open(low: float, high: float) -> Range:
    """Return `(low, high]`."""
    return Range(low, high, has_low=False)


def right_open(low: float, high: float) -> Range:
    """Return `[low, high)`."""
    return Range(low, high, has_high=False)


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config: everything that is known about it.

    Attributes:
      path: dotted, such as `mixup.kind`.
      default: its value under the recipe `funmatch`.
      help: what it is, in a sentence or two.
      none_or: type of its values where None is allowed too, which is then the default.
      choices: the values that a text may have; empty where any other rule applies.
      range: the interval of a number.
      form: what a text or a tuple holds; `checks` has a check for each form.
      unit: of a number.
      source: publication or code that the field or its default is from.
      resume_mutable: it does not touch the training's trajectory, so a run may be resumed under
        another value.
      cohort_mutable: members of a cohort may differ in it, because it acts behind the view and the
        teacher (`training/cohort.py`).
    """

    path: str
    default: Any
    help: str
    _: dataclasses.KW_ONLY
    none_or: type | None = None
    choices: tuple[str, ...] = ()
    range: Range | None = None
    form: str = ""
    unit: str = ""
    source: str = ""
    resume_mutable: bool = False
    cohort_mutable: bool = False

    @property
    def group(self) -> str:
        """The name of the field's group; empty for a field of no group."""
        return self.path.rpartition(".")[0]

    @property
    def kind(self) -> type:
        """The type of its values, None aside."""
        return type(self.default) if self.none_or is None else self.none_or
