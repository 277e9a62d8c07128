"""What a caller from Python gives beside a config: objects that no text can name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.data import arrays
from kd_jax.data.splits import Source, Split
from kd_jax.models import zoo
from kd_jax.runtime.errors import UserError
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

    def check(self, config: ConfigDict) -> None:
        """Raise `UserError` if a config and the objects beside it contradict one another."""
        missing = []
        for path, prefix, value in (
            ("dataset.name", arrays.NAME, self.source),
            ("student.arch", zoo.PYTHON, self.student),
            ("distill.loss", "python", self.loss),
        ):
            text = config_lib.get_field(config, path)
            if text.startswith(prefix) and value is None:
                missing.append(f"config.{path} is {text}")
            if not text.startswith(prefix) and value is not None:
                raise UserError(
                    f"config.{path} is {text!r} and an object is given in its place: expected one "
                    "of them"
                )
        if self.source is not None:
            _check_fields_of_arrays(config)
        if self.student is not None:
            zoo_only = {"dropout": 0.0, "dtype": "float32", "weights": ""}
            for name, value in zoo_only.items():
                if config.student[name] != value:
                    raise UserError(
                        f"config.student.{name} is {config.student[name]!r}, expected {value!r} "
                        "with a module from Python, which says it itself"
                    )
        if missing:
            raise UserError(
                f"{' and '.join(missing)}, which was given as a Python object: call kd_jax.distill "
                "with it again"
            )


def _check_fields_of_arrays(config: ConfigDict) -> None:
    """Raise `UserError` if a field asks for what is not done to arrays."""
    default = config_lib.default_config().dataset
    for name in ("image_size", "val_examples", "split_seed", "validation"):
        if config.dataset[name] != default[name]:
            raise UserError(
                f"config.dataset.{name} is {config.dataset[name]!r}, expected {default[name]!r} "
                "with data as arrays: give them as they are to be, and validation as val="
            )


NOTHING = Given()
