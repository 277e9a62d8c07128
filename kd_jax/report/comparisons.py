"""Find the rows that can be compared: those whose configs differ in exactly one field.

The length of training does not count as a difference, because the study itself compares runs of
300 epochs with runs of 400; the labels state it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kd_jax import config as config_lib
from kd_jax.report.results import Row

TEACHER, TEMPERATURE, LEARNING_RATE, MIXUP = (
    "teacher",
    "distill.temperature",
    "learning_rate",
    "mixup",
)
_STUDY_FIELDS = (TEACHER, TEMPERATURE, LEARNING_RATE, MIXUP)  # what the study itself compares
_LENGTH_FIELDS = ("total_epochs", "total_steps", "warmup_epochs", "patience")
# Fields that do not affect training; the seed, in which the runs of a row differ; and names of the
# teacher, which is identified by the hash of its weights.
_IGNORED_FIELDS = (
    *config_lib.RESUME_MUTABLE,
    *_LENGTH_FIELDS,
    "seed",
    "teacher.arch",
    "teacher.claimed_top1",
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows that differ in one field.

    Attributes:
      field: path in the config; `teacher` and `mixup` stand for all their fields.
      rows: in the order of their values, if these are numbers.
      labels: the value of each row in words, all different.
    """

    field: str
    rows: tuple[Row, ...]
    labels: tuple[str, ...]


def find(rows: Sequence[Row]) -> list[Comparison]:
    """Return all comparisons between rows, those of the study first."""
    factors = {row.label: _factors(row) for row in rows if row.first.config}
    fields = dict.fromkeys(_STUDY_FIELDS)
    for factors_of_row in factors.values():
        fields |= dict.fromkeys(factors_of_row)
    comparisons = []
    for field in fields:
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            if row.label in factors:
                other_factors = {name: v for name, v in factors[row.label].items() if name != field}
                groups.setdefault(repr(sorted(other_factors.items())), []).append(row)
        for group in groups.values():
            values = {row.label: factors[row.label].get(field) for row in group}
            if len(set(map(repr, values.values()))) > 1:
                comparisons.append(_comparison(field, group, values))
    return comparisons


def learns_from_labels(row: Row) -> bool:
    """Return whether the students of a row were trained from labels alone."""
    return row.first.config.get("distill.label_weight") == 1


def study_values(row: Row) -> dict[str, Any]:
    """Return a row's values of the fields that the study compares."""
    factors = _factors(row)
    return {field: factors[field] for field in _STUDY_FIELDS}


def in_words(field: str, value: Any) -> str:
    """Return a value of a field as a label."""
    if field == TEMPERATURE:
        return f"T = {value:g}"
    if field == LEARNING_RATE:
        return f"{value:g}"
    if field == TEACHER:
        return str(value[0])
    if field == MIXUP:
        return "no mixup" if value == "none" else f"mixup per {dict(value)['mixup.kind']}"
    return str(value)


def _factors(row: Row) -> dict[str, Any]:
    """Return all values in which rows may differ, without fields that have no effect."""
    run = row.first
    values = {name: v for name, v in run.config.items() if name not in _IGNORED_FIELDS}
    mixup = tuple((name, v) for name, v in values.items() if name.startswith("mixup."))
    factors = {name: v for name, v in values.items() if not name.startswith("mixup.")}
    factors[MIXUP] = mixup if run.config["mixup.kind"] != "none" else "none"
    sha256 = (run.certificate or {}).get("sha256")
    factors[TEACHER] = (run.result.get("teacher"), sha256)
    return factors


def _comparison(field: str, rows: list[Row], values: dict[str, Any]) -> Comparison:
    """Return a comparison with its rows in order and with distinct labels.

    Args:
      field: in which the rows differ.
      rows: at least two.
      values: of the field, by the label of the row.
    """
    if all(isinstance(value, int | float) for value in values.values()):
        rows = sorted(rows, key=lambda row: values[row.label])
    words = [in_words(field, values[row.label]) for row in rows]
    epochs = [f"{row.first.result['epochs']:.0f} epochs" for row in rows]
    if len(set(epochs)) > 1:
        words = [f"{word}, {length}" for word, length in zip(words, epochs, strict=True)]
    labels = [
        word if words.count(word) == 1 else f"{word} ({row.label})"
        for word, row in zip(words, rows, strict=True)
    ]
    return Comparison(field, tuple(rows), tuple(labels))
