"""Which rows can be compared: those whose configs differ in one field, and in nothing else.

How long a run may train is not counted as a difference, since the study itself compares runs of 300
epochs with runs of 400; it is said beside the value instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kd_jax import config as config_lib
from kd_jax.report.records import Row

TEACHER, TEMPERATURE, LEARNING_RATE, MIXUP = (
    "teacher",
    "distill.temperature",
    "learning_rate",
    "mixup",
)
_FIRST = (TEACHER, TEMPERATURE, LEARNING_RATE, MIXUP)  # the study's own questions
_BUDGET = ("total_epochs", "total_steps", "warmup_epochs", "patience")
# Besides what does not touch the training: seeds are what a row has several of, and the teacher is
# known by the hash of its weights.
_NOT_COMPARED = (
    *config_lib.RESUME_MUTABLE,
    *_BUDGET,
    "seed",
    "teacher.arch",
    "teacher.claimed_top1",
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows that differ in one field.

    Attributes:
      field: path in the config; `teacher` and `mixup` stand for all that belongs to them.
      labels: the value of each row, in words; no two are the same.
    """

    field: str
    rows: tuple[Row, ...]
    labels: tuple[str, ...]


def find(rows: Sequence[Row]) -> list[Comparison]:
    """Return every comparison that the rows allow, the study's own questions first."""
    factors = {row.label: _factors(row) for row in rows if row.first.config}
    compared = [row for row in rows if row.label in factors]
    fields = dict.fromkeys(_FIRST)
    for of_row in factors.values():
        fields |= dict.fromkeys(of_row)
    found = []
    for field in fields:
        groups: dict[Any, list[Row]] = {}
        for row in compared:
            rest = {name: v for name, v in factors[row.label].items() if name != field}
            groups.setdefault(repr(sorted(rest.items())), []).append(row)
        for group in groups.values():
            values = {row.label: factors[row.label].get(field) for row in group}
            if len(set(map(repr, values.values()))) > 1:
                found.append(_comparison(field, group, values))
    return found


def learns_from_labels(row: Row) -> bool:
    """Tell whether a row's students learnt from labels alone."""
    return row.first.config.get("distill.label_weight") == 1


def asked(row: Row) -> dict[str, Any]:
    """Return a row's answers to the study's own questions, as they are compared."""
    factors = _factors(row)
    return {field: factors[field] for field in _FIRST}


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
    """Return everything in which a row may differ from another, fields that do nothing left out."""
    run = row.first
    flat = {name: v for name, v in run.config.items() if name not in _NOT_COMPARED}
    mixup = tuple((name, v) for name, v in flat.items() if name.startswith("mixup."))
    factors = {name: v for name, v in flat.items() if not name.startswith("mixup.")}
    factors[MIXUP] = mixup if run.config["mixup.kind"] != "none" else "none"
    sha256 = (run.certificate or {}).get("sha256")
    factors[TEACHER] = (run.result.get("teacher"), sha256)
    return factors


def _comparison(field: str, rows: list[Row], values: dict[str, Any]) -> Comparison:
    """Put rows in the order of their values, and name them apart."""
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
