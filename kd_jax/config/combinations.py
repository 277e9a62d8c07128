"""Constraints between fields of a config, each of which is right by itself."""

from __future__ import annotations

from ml_collections import ConfigDict

from kd_jax.config import schema
from kd_jax.config.fields import LABEL_LOSSES
from kd_jax.models import zoo

# What the leaders of fields that are not read without them must say.
_LEADERS = {
    "teacher.record": "config.teacher.record names a directory",
    "distill.features": "config.distill.features names some",
}


def check(config: ConfigDict) -> list[str]:
    """Return a sentence for each constraint between fields that does not hold."""
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
    problems += _check_quantization(config) + _check_features(config)
    for leader, unless in _LEADERS.items():
        if not schema.get_field(config, leader):
            problems += _unused(config, schema.FOLLOWERS[leader], unless)
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
        return _unused(config, ("student.quantize_share",), "config.student.quantize=int8")
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
    if config.distill.features:
        problems.append(
            f"{name} and config.distill.features is {config.distill.features!r}, expected () with "
            "it: features are compared of students in floating point"
        )
    return problems


def _unused(config: ConfigDict, paths: tuple[str, ...], unless: str) -> list[str]:
    """Return a sentence for each field that nothing reads, and that is not its default."""
    values = {path: (schema.get_field(config, path), schema.BY_PATH[path].default)
              for path in paths}  # fmt: skip
    return [
        f"config.{path} is {value}, expected {default} unless {unless}"
        for path, (value, default) in values.items()
        if value != default
    ]


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
