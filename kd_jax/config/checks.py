"""Validate a config: type, choice and range of each field, then constraints between fields.

Does no I/O and imports no JAX. Choices and ranges are those of the schema's entries.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ml_collections import ConfigDict

from kd_jax.config import schema
from kd_jax.config.fields import FIELDS, LABEL_LOSSES, NAME, PATH, TRACKERS
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
        problems += _check_combinations(config)
        problems += _check_features(config)
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


def _check_combinations(config: ConfigDict) -> list[str]:
    """Check constraints between fields, each of which is right by itself."""
    problems, distill, mixes = [], config.distill, config.mixup.kind != "none"
    if distill.label_smoothing > 0 and distill.label_weight == 0:
        problems.append(
            f"config.distill.label_smoothing is {distill.label_smoothing}, expected 0: with "
            "config.distill.label_weight=0 no label is read"
        )
    if distill.warmup_epochs > 0 and not 0 < distill.label_weight < 1:
        problems.append(
            f"config.distill.warmup_epochs is {distill.warmup_epochs}, expected 0 with "
            f"config.distill.label_weight={distill.label_weight}: the distillation loss warms up "
            "beside the cross-entropy, and there is only one of them"
        )
    if distill.view == "fixed" and mixes:
        problems.append(
            "config.distill.view is fixed, expected config.mixup.kind=none with it: the teacher's "
            "logits are of clean images and cannot answer for a mixture"
        )
    if distill.loss in LABEL_LOSSES and mixes:
        problems.append(
            f"config.distill.loss is {distill.loss}, expected config.mixup.kind=none with it: it "
            "asks for the one label of an image, and a mixture has two"
        )
    if config.mixup.kind == "group" and config.batch_size % config.mixup.groups:
        problems.append(
            f"config.mixup.groups is {config.mixup.groups}, expected a divisor of "
            f"config.batch_size={config.batch_size}"
        )
    if config.mixup.kind != "group" and config.mixup.groups != 1:
        problems.append(
            f"config.mixup.groups is {config.mixup.groups}, expected 1 unless "
            "config.mixup.kind=group"
        )
    if config.augment.crop_pad_px and config.augment.crop_area < 1:
        problems.append(
            f"config.augment.crop_area is {config.augment.crop_area}, expected 1 unless "
            "config.augment.crop_pad_px=0: an image is cropped in one way"
        )
    if config.batch_size % config.accumulate:
        problems.append(
            f"config.accumulate is {config.accumulate}, expected a divisor of "
            f"config.batch_size={config.batch_size}"
        )
    if config.patience and config.dataset.validation == "half_of_test":
        problems.append(
            f"config.patience is {config.patience}, expected 0 with "
            "config.dataset.validation=half_of_test: to stop early on the test split is to choose "
            "by it"
        )
    problems += _check_quantization(config)
    if config.teacher.record and config.teacher.replay:
        problems.append(
            f"config.teacher.record is {config.teacher.record} and config.teacher.replay is "
            f"{config.teacher.replay}, expected one of them: a recording is made of a teacher"
        )
    if distill.view == "fixed" and (config.teacher.record or config.teacher.replay):
        problems.append(
            "config.distill.view is fixed, expected neither config.teacher.record nor "
            "config.teacher.replay with it: its logits are kept in the workdir anyway"
        )
    if distill.label_weight == 1 and (config.teacher.record or config.teacher.replay):
        problems.append(
            "config.distill.label_weight is 1, expected neither config.teacher.record nor "
            "config.teacher.replay with it: training does not ask the teacher"
        )
    if config.teacher.ensemble and not config.teacher.weights:
        problems.append(
            "config.teacher.ensemble names further teachers, expected the first in "
            "config.teacher.weights"
        )
    return problems


def _check_quantization(config: ConfigDict) -> list[str]:
    """Check what goes together with a student that is trained for int8."""
    student = config.student
    share, name = student.quantize_share, f"config.student.quantize is {student.quantize}"
    if student.quantize == "none":
        default = schema.BY_PATH["student.quantize_share"].default
        return [] if share == default else [
            f"config.student.quantize_share is {share}, expected {default} unless "
            "config.student.quantize=int8"
        ]  # fmt: skip
    problems = []
    if not zoo.is_quantizable(student.arch):
        problems.append(
            f"{name} and config.student.arch is {student.arch}, expected none with it: "
            "student.quantize works with the zoo's networks that have batch norm (ResNet, VGG, "
            "MobileNetV2 and V3)"
        )
    if student.dtype != "float32":
        problems.append(
            f"{name} and config.student.dtype is {student.dtype}, expected float32 with it: other "
            "numbers cannot hold those of int8 exactly"
        )
    if config.patience:
        problems.append(
            f"{name} and config.patience is {config.patience}, expected 0 with it: the best on "
            "validation could be from before the student was quantised"
        )
    if share == 1 and not student.weights:
        problems.append(
            f"config.student.quantize_share is {share} without config.student.weights, expected "
            "less: batch norm keeps the running statistics that it has when rounding begins, and "
            "before the first step there are none"
        )
    return problems


def _check_features(config: ConfigDict) -> list[str]:
    """Check that features are pairs, and that one teacher can be asked for them in the step."""
    features, distill, teacher = config.distill.features, config.distill, config.teacher
    if not features:
        return []
    are_pairs = all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(p, str) and p for p in pair)
        for pair in features
    )
    if not are_pairs:
        return [
            f"config.distill.features is {features!r}, expected pairs of a path of the teacher and "
            "one of the student, such as (('layer3', 'features.8'),)"
        ]
    reasons = {
        f"config.distill.view={distill.view}": distill.view != "same",
        "config.teacher.ensemble": bool(teacher.ensemble),
        "config.teacher.record": bool(teacher.record),
        "config.teacher.replay": bool(teacher.replay),
        "config.distill.label_weight=1": distill.label_weight == 1,
    }
    return [
        f"config.distill.features is {features!r}, expected none with {what}: they are of one "
        "teacher, which is asked in the step about the student's own pixels"
        for what, is_so in reasons.items()
        if is_so
    ]


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
