"""What a caller from Python gives beside a config: objects that no text can name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kd_jax.data.splits import Source, Split
from kd_jax.teachers.teacher import ForeignNetwork


@dataclasses.dataclass(frozen=True)
class Given:
    """Objects of a run; all empty for a run from the command line.

    Attributes:
      source: the data set; None: `config.dataset` names it.
      validation: of the data set, with `source`.
      class_names: of the data set, in the order of its labels; None: as `config.dataset` says.
      teachers: by what names them in `config.teacher`.
      student: a module; None: `config.student.arch` names one of the zoo.
      loss: of each example, from teacher's logits, student's logits, and labels if it takes three
        arguments; None: `config.distill.loss`.
      callbacks: see `callbacks.Callback`.
    """

    source: Source | None = None
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    teachers: Mapping[str, ForeignNetwork] = dataclasses.field(default_factory=dict)
    student: Any = None
    loss: Callable[..., Any] | None = None
    callbacks: tuple[Any, ...] = ()


NOTHING = Given()
