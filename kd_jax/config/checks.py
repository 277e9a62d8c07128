"""Is this experiment possible? Every value by itself, then values together; nothing is started."""

from __future__ import annotations

import re
from typing import Any

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.data import sampler, sources, tfds_source
from kd_jax.distill import losses
from kd_jax.models import zoo
from kd_jax.runtime import paths
from kd_jax.runtime.errors import UserError
from kd_jax.training import optimizer
from kd_jax.weights import published

_CHOICES = {
    "optimizer.name": optimizer.OPTIMIZERS,
    "optimizer.decay": ("decoupled", "l2"),
    "optimizer.decay_on": ("kernels", "all"),
    "teacher.on_mismatch": ("stop", "warn"),
    "teacher.normalisation": ("own", "half"),
    "teacher.dtype": ("float32", "bfloat16"),
    "teacher.combine": ("probabilities", "losses"),
    "student.normalisation": ("dataset", "half"),
    "student.dtype": ("float32", "bfloat16"),
    "dataset.validation": ("held_out", "half_of_test"),
    "dataset.resident": ("auto", "always", "never"),
    "distill.loss": losses.NAMES,
    "distill.reduction": ("mean", "sum"),
    "distill.view": ("same", "independent", "fixed"),
    "mixup.kind": ("none", "batch", "group", "example"),
    "mixup.partner": sampler.PARTNERS,
    "mixup.method": ("mixup", "cutmix"),
    "schedule.name": optimizer.SCHEDULES,
}
_PATHS = ("dataset.data_dir", "teacher.weights", "student.weights")
# Data sets whose teachers nobody publishes, and the configs that train one.
_OWN_TEACHERS = {
    sources.FOLDER: "configs/folder.py:teacher --config.dataset.data_dir=DIR",
    sources.DIGITS: "configs/demo.py:teacher",
}
_DEFAULT_DATASET = "cifar100"  # of configs/teacher.py
# Field: (lowest, lowest is allowed, highest, highest is allowed).
_RANGES = {
    "seed": (0, True, 2**31 - 1, True),
    "batch_size": (1, True, 2**20, True),
    "accumulate": (1, True, 2**20, True),
    "total_epochs": (0, False, 1e6, True),
    "total_steps": (1, True, 2**31 - 1, True),
    "learning_rate": (0, False, 1e3, True),
    "warmup_epochs": (0, True, 1e6, True),
    "weight_decay": (0, True, 1, False),
    "optimizer.momentum": (0, True, 1, False),
    "optimizer.clip_norm": (0, True, 1e9, True),
    "dataset.val_examples": (1, True, 2**31 - 1, True),
    "dataset.image_size": (0, True, 4096, True),
    "dataset.device_budget_mb": (0, True, 1e9, True),
    "dataset.split_seed": (0, True, 2**31 - 1, True),
    "teacher.claimed_top1": (0, True, 100, True),
    "teacher.tolerance_points": (0, True, 100, True),
    "student.dropout": (0, True, 1, False),
    "student.ema_decay": (0, True, 1, False),
    "distill.temperature": (0, False, 1e4, True),
    "distill.label_weight": (0, True, 1, True),
    "distill.label_smoothing": (0, True, 1, False),
    "distill.dkd_target": (0, True, 1e3, True),
    "distill.dkd_others": (0, True, 1e3, True),
    "distill.dist_inter": (0, True, 1e3, True),
    "distill.dist_intra": (0, True, 1e3, True),
    "mixup.alpha": (0, False, 1e3, True),
    "mixup.groups": (1, True, 2**20, True),
    "patience": (0, True, 2**31 - 1, True),
    "schedule.step_factor": (0, False, 1, True),
    "schedule.cooldown": (0, True, 1, True),
    "augment.crop_pad_px": (0, True, 16, True),
    "augment.crop_area": (0, False, 1, True),
    "checkpoint_every_steps": (1, True, 2**31 - 1, True),
    "keep_checkpoints": (1, True, 1000, True),
    "eval_every_epochs": (0, False, 1e6, True),
    "log_every_steps": (1, True, 2**31 - 1, True),
    "num_devices": (0, True, 4096, True),
    "steps_per_call": (1, True, 10_000, True),
    "student.init_seed": (0, True, 2**31 - 1, True),
}


def check(config: ConfigDict) -> None:
    """Raise one `UserError` that lists every value that cannot be; nothing is read or started."""
    problems = _missing_fields(config) or _wrong_types(config)
    if not problems:
        for path, choices in _CHOICES.items():
            value = config_lib.get_field(config, path)
            if value not in choices:
                problems.append(f"config.{path} is {value!r}, expected {' or '.join(choices)}")
        for path, (low, with_low, high, with_high) in _RANGES.items():
            value = config_lib.get_field(config, path)
            if value is None and path in config_lib.MAY_BE_NONE:
                continue
            above = value >= low if with_low else value > low
            below = value <= high if with_high else value < high
            if not (above and below):  # NaN fails both
                ends = f"{'[' if with_low else '('}{low:g}, {high:g}{']' if with_high else ')'}"
                problems.append(f"config.{path} is {value}, expected a number in {ends}")
        problems += _check_networks(config)
        problems += _check_sequences(config)
        problems += _check_combinations(config)
    if problems:
        raise UserError("; ".join(problems))


def _missing_fields(config: ConfigDict) -> list[str]:
    """Say which fields of `config.default_config` a config lacks, and which it has too many."""
    expected, given = (
        set(config_lib.flatten(config_lib.default_config())),
        set(config_lib.flatten(config)),
    )
    return [f"config.{path} is missing" for path in sorted(expected - given)] + [
        f"config.{path} is not a field of kd_jax" for path in sorted(given - expected)
    ]


def _wrong_types(config: ConfigDict) -> list[str]:
    """Say which values are of another type than the field's default; placeholders may be None."""
    types = {
        path: type(value) for path, value in config_lib.flatten(config_lib.default_config()).items()
    }
    types |= config_lib.MAY_BE_NONE
    problems = []
    for path, value in config_lib.flatten(config).items():
        expected = types[path]
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits and not (value is None and path in config_lib.MAY_BE_NONE):
            problems.append(f"config.{path} is {value!r}, expected a {expected.__name__}")
    return problems


def _check_networks(config: ConfigDict) -> list[str]:
    problems = []
    for path in ("student.arch", "teacher.arch"):
        arch = config_lib.get_field(config, path)
        if arch not in zoo.NAMES and not (path == "teacher.arch" and arch == ""):
            known = ", ".join(zoo.NAMES)
            problems.append(f"config.{path} is {arch!r}, expected one of {known}")
    if config.distill.label_weight < 1 and not config.teacher.weights:
        problems.append(
            "config.teacher.weights is empty, expected the teacher to distil from: "
            + ways_to_a_teacher(config.teacher.arch, tfds_source.base_name(config.dataset.name))
        )
    return problems


def _check_sequences(config: ConfigDict) -> list[str]:
    """Say what is wrong with the fields that are names, tuples, or a regular expression."""
    names = ("dataset.name", "dataset.train_split", "dataset.test_split")
    problems = [f"config.{path} is empty, expected a name" for path in names
                if not config_lib.get_field(config, path)]  # fmt: skip
    if config.dataset.train_split == config.dataset.test_split:
        problems.append(
            f"config.dataset.test_split is {config.dataset.test_split!r}, expected another than "
            "config.dataset.train_split"
        )
    problems += _check_paths(config) + _check_digits(config)
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
    if shares and (
        len(shares) != 1 + len(ensemble) or not all(_is_number(x) and x > 0 for x in shares)
    ):
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
    """Say which paths lead to no place of this machine."""
    named = {path: config_lib.get_field(config, path) for path in _PATHS}
    named |= {f"teacher.ensemble[{n}]": path for n, path in enumerate(config.teacher.ensemble)}
    found = (paths.why_not(path, f"config.{field}") for field, path in named.items())
    return [problem for problem in found if problem]


def _check_digits(config: ConfigDict) -> list[str]:
    """Say which options are of no use to the embedded set, which has one form."""
    if config.dataset.name != sources.DIGITS:
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
    """Say which values cannot be together, each right by itself."""
    problems, distill, mixes = [], config.distill, config.mixup.kind != "none"
    if distill.label_smoothing > 0 and distill.label_weight == 0:
        problems.append(
            f"config.distill.label_smoothing is {distill.label_smoothing}, expected 0: with "
            "config.distill.label_weight=0 no label is read"
        )
    if distill.view == "fixed" and mixes:
        problems.append(
            "config.distill.view is fixed, expected config.mixup.kind=none with it: the teacher's "
            "logits are of clean images and cannot answer for a mixture"
        )
    if distill.loss in losses.READ_LABELS and mixes:
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
    if config.teacher.ensemble and not config.teacher.weights:
        problems.append(
            "config.teacher.ensemble names further teachers, expected the first in "
            "config.teacher.weights"
        )
    return problems


def ways_to_a_teacher(arch: str, dataset: str) -> str:
    """Return how to get a teacher's weights, as the end of a sentence."""
    if dataset in _OWN_TEACHERS:
        return (
            f"train one with --config={_OWN_TEACHERS[dataset]} and give that run's --workdir, or "
            f"import a file with `python -m kd_jax.import_teacher --arch={arch or 'ARCH'} "
            f"--dataset={dataset} --src=FILE --num_classes=N --mean=R,G,B --std=R,G,B --out=DIR` "
            "and give DIR"
        )
    name = arch or "ARCH"
    known = {key for key in published.TABLE if key[0] == dataset}
    is_published = (dataset, arch) in known if arch else bool(known)
    what, src = ("the published file", "published") if is_published else ("its file", "FILE")
    other = "" if dataset == _DEFAULT_DATASET else f" --config.dataset.name={dataset}"
    return (
        f"import {what} with `python -m kd_jax.import_teacher --arch={name} --dataset={dataset} "
        f"--src={src} --out=DIR` and give DIR, or train it with --config=configs/teacher.py:{name}"
        f"{other} and give that run's --workdir"
    )
