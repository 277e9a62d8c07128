"""Validate a config: type, choice and range of each field, then constraints between fields.

Does no I/O and imports no JAX. Choices and ranges are those of the schema's entries.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ml_collections import ConfigDict

from kd_jax.config import combinations, schema
from kd_jax.config.fields import FIELDS, NAME, PATH, TRACKERS
from kd_jax.data import catalog, tfds_source
from kd_jax.models import zoo
from kd_jax.runtime import paths
from kd_jax.runtime.errors import UserError
from kd_jax.weights import published


def check(config: ConfigDict) -> None:
    """Raise one `UserError` that lists every wrong value; nothing is read or started."""
    problems = _missing_fields(config) or _wrong_types(config)
    if not problems:
        problems += _check_choices(config)
        problems += _check_ranges(config)
        problems += _check_networks(config)
        problems += _check_sequences(config)
        problems += combinations.check(config)
    if problems:
        raise UserError("; ".join(problems))


def _missing_fields(config: ConfigDict) -> list[str]:
    """Return a sentence for each field of the schema that is missing, and each unknown one."""
    expected, present = set(schema.BY_PATH), set(schema.flatten(config))
    return [f"config.{path} is missing" for path in sorted(expected - present)] + [
        f"config.{path} is not a field of kd_jax" for path in sorted(present - expected)
    ]


def _wrong_types(config: ConfigDict) -> list[str]:
    """Return a sentence for each value of a wrong type; an int is also a float."""
    problems = []
    for path, value in schema.flatten(config).items():
        expected = schema.TYPES[path]
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits and not (value is None and path in schema.MAY_BE_NONE):
            problems.append(f"config.{path} is {value!r}, expected a {expected.__name__}")
    return problems


def _check_choices(config: ConfigDict) -> list[str]:
    problems = []
    for field in FIELDS:
        value = schema.get_field(config, field.path)
        if field.choices and value not in field.choices:
            expected = " or ".join(field.choices)
            problems.append(f"config.{field.path} is {value!r}, expected {expected}")
    return problems


def _check_ranges(config: ConfigDict) -> list[str]:
    problems = []
    for field in FIELDS:
        value = schema.get_field(config, field.path)
        if field.range is None or (value is None and field.path in schema.MAY_BE_NONE):
            continue
        if not field.range.holds(value):
            problems.append(f"config.{field.path} is {value}, expected a number in {field.range}")
    held_out = config.dataset.val_examples
    if math.isfinite(held_out) and held_out >= 1 and held_out % 1:
        problems.append(
            f"config.dataset.val_examples is {held_out}, expected a whole number of examples, or "
            "a share of train below 1"
        )
    return problems


def _check_networks(config: ConfigDict) -> list[str]:
    problems = []
    for path in ("student.arch", "teacher.arch"):
        arch = schema.get_field(config, path)
        is_given = path == "student.arch" and arch.startswith(zoo.PYTHON)
        if arch not in zoo.NAMES and not is_given and not (path == "teacher.arch" and arch == ""):
            known = ", ".join(zoo.NAMES)
            problems.append(f"config.{path} is {arch!r}, expected one of {known}")
    if config.distill.label_weight < 1 and not (config.teacher.weights or config.teacher.replay):
        problems.append(
            "config.teacher.weights is empty, expected the teacher to distil from: "
            + ways_to_a_teacher(config.teacher.arch, tfds_source.base_name(config.dataset.name))
        )
    return problems


def _check_sequences(config: ConfigDict) -> list[str]:
    """Check the fields that are names, paths, tuples, or a regular expression."""
    problems = [f"config.{path} is empty, expected a name" for path in _of_form(NAME)
                if not schema.get_field(config, path)]  # fmt: skip
    if config.dataset.train_split == config.dataset.test_split:
        problems.append(
            f"config.dataset.test_split is {config.dataset.test_split!r}, expected another than "
            "config.dataset.train_split"
        )
    problems += _check_paths(config) + _check_digits(config)
    trackers = config.trackers
    if len(set(trackers)) < len(trackers) or not set(trackers) <= set(TRACKERS):
        problems.append(
            f"config.trackers is {trackers!r}, expected each of {', '.join(TRACKERS)} once, or "
            "some of them, or ()"
        )
    steps, shares = config.schedule.step_at, config.teacher.shares
    if not all(_is_number(x) and 0 < x < 1 for x in steps) or list(steps) != sorted(set(steps)):
        problems.append(
            f"config.schedule.step_at is {steps!r}, expected rising shares of the run in (0, 1)"
        )
    ensemble = config.teacher.ensemble
    if not all(isinstance(path, str) and path for path in ensemble):
        problems.append(f"config.teacher.ensemble is {ensemble!r}, expected paths")
    elif len({config.teacher.weights, *ensemble}) < 1 + len(ensemble):
        problems.append(
            f"config.teacher.ensemble is {ensemble!r}, expected each teacher once, and not that of "
            "config.teacher.weights: to give one more weight, use config.teacher.shares"
        )
    is_told_by_recording = bool(config.teacher.replay) and not config.teacher.weights
    has_one_each = len(shares) == 1 + len(ensemble) or is_told_by_recording
    if shares and not (has_one_each and all(_is_number(x) and x > 0 for x in shares)):
        problems.append(
            f"config.teacher.shares is {shares!r}, expected a positive number for each of the "
            f"{1 + len(ensemble)} teachers"
        )
    try:
        re.compile(config.student.freeze)
    except re.error as error:
        problems.append(
            f"config.student.freeze is {config.student.freeze!r}, expected a regular expression "
            f"({error})"
        )
    return problems


def _check_paths(config: ConfigDict) -> list[str]:
    """Check that paths are on this machine; whether they exist is seen when they are read."""
    places = {path: schema.get_field(config, path) for path in _of_form(PATH)}
    places |= {f"teacher.ensemble[{n}]": place for n, place in enumerate(config.teacher.ensemble)}
    problems = (paths.why_not(place, f"config.{path}") for path, place in places.items())
    return [problem for problem in problems if problem]


def _of_form(form: str) -> list[str]:
    return [field.path for field in FIELDS if field.form == form]


def _check_digits(config: ConfigDict) -> list[str]:
    """Check the options of the embedded set, whose splits and image size are fixed."""
    if config.dataset.name != catalog.DIGITS:
        return []
    fixed = {"train_split": ("train",), "test_split": ("test",), "image_size": (0, 32)}
    return [
        f"config.dataset.{field} is {config.dataset[field]!r}, expected {values[0]!r}: "
        "config.dataset.name=digits has one form"
        for field, values in fixed.items()
        if config.dataset[field] not in values
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def ways_to_a_teacher(arch: str, dataset: str) -> str:
    """Return the end of an error sentence: the commands that make a teacher's weights.

    Args:
      arch: of the teacher; empty where it is not known.
      dataset: name of the data set, without a version.
    """
    own_teacher = catalog.facts(dataset).own_teacher
    if own_teacher:
        return (
            f"train one with --config={own_teacher} and give that run's --workdir, or "
            f"import a file with `python -m kd_jax.import_teacher --arch={arch or 'ARCH'} "
            f"--dataset={dataset} --src=FILE --num_classes=N --mean=R,G,B --std=R,G,B --out=DIR` "
            "and give DIR"
        )
    name = arch or "ARCH"
    known = {key for key in published.TABLE if key[0] == dataset}
    is_published = (dataset, arch) in known if arch else bool(known)
    what, src = ("the published file", "published") if is_published else ("its file", "FILE")
    other = "" if dataset == catalog.DEFAULT_NAME else f" --config.dataset.name={dataset}"
    return (
        f"import {what} with `python -m kd_jax.import_teacher --arch={name} --dataset={dataset} "
        f"--src={src} --out=DIR` and give DIR, or train it with --config=configs/teacher.py:{name}"
        f"{other} and give that run's --workdir"
    )
