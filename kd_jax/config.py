"""Every field of an experiment, its default, and what it may be. Nothing else holds a default.

`default_config` gives the recipe `funmatch`: label-free function matching on CIFAR-100 (Beyer et
al. 2021). A file in `configs/` starts from it and changes what its experiment is about. The
config is locked, so a misspelt override fails and names the nearest field; `check` looks at the
values before any data is read.
"""

from __future__ import annotations

import json
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from kd_jax import models
from kd_jax.errors import UserError

# Fields that do not touch the training's trajectory, so a run may be resumed under other values.
MAY_CHANGE = (
    "checkpoint_every_steps",
    "eval_every_epochs",
    "log_every_steps",
    "keep_checkpoints",
    "num_devices",
    "dataset.data_dir",
    "dataset.download",
    "teacher.weights",  # identified by its sha256 instead
    "teacher.tolerance_points",
    "teacher.on_mismatch",
)


def default_config() -> ConfigDict:
    """Return the default experiment; every field a config or an override can set is here."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 512  # of the whole step, over all devices
    config.total_epochs = 300.0
    config.total_steps = placeholder(int)  # when given, instead of total_epochs
    config.learning_rate = 1e-3  # at the peak of the schedule
    config.warmup_epochs = 5.0  # linear from 0; then cosine to 0
    config.weight_decay = 1e-4

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # adam | sgd
    config.optimizer.momentum = 0.9  # sgd: of the velocity
    config.optimizer.nesterov = True  # sgd
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0: no clipping
    # decoupled: weights shrink by weight_decay * schedule / peak, whatever the learning rate.
    # l2: weight_decay * weights is added to the gradient.
    config.optimizer.decay = "decoupled"
    config.optimizer.decay_on = "kernels"  # kernels | all

    config.dataset = ConfigDict()
    config.dataset.name = "cifar100"  # cifar100 | cifar10 | digits
    config.dataset.data_dir = ""  # empty: TFDS_DATA_DIR, else tfds' own default
    config.dataset.download = False  # let tfds download what is not there
    config.dataset.val_examples = 5000  # held out of train, stratified
    config.dataset.split_seed = 0  # of that hold-out

    config.teacher = ConfigDict()
    config.teacher.arch = ""  # empty: no teacher (or what the weights say)
    config.teacher.weights = ""  # a .pth file, an imported directory, or a finished run
    config.teacher.claimed_top1 = placeholder(float)  # percent on test; None: as the weights say
    config.teacher.tolerance_points = 0.2
    config.teacher.on_mismatch = "stop"  # stop | warn

    config.student = ConfigDict()
    config.student.arch = "mobilenet_v3_small"
    config.student.dropout = 0.0

    config.distill = ConfigDict()
    config.distill.temperature = 5.0
    # loss = label_weight * cross-entropy + (1 - label_weight) * T^2 * KL(teacher || student).
    # 0 is label-free; 1 is training from scratch, where a teacher only serves to compare.
    config.distill.label_weight = 0.0

    config.mixup = ConfigDict()
    config.mixup.kind = "batch"  # none | batch (one lambda a batch) | example (one each)

    config.augment = ConfigDict()
    config.augment.crop_pad_px = 4
    config.augment.flip = True

    config.checkpoint_every_steps = 500
    config.keep_checkpoints = 2  # the newest; the best on validation is kept besides
    config.eval_every_epochs = 1.0
    config.log_every_steps = 10
    config.num_devices = 0  # 0: all of them; on CPU, one a core
    return config


_CHOICES = {
    "optimizer.name": ("adam", "sgd"),
    "optimizer.decay": ("decoupled", "l2"),
    "optimizer.decay_on": ("kernels", "all"),
    "dataset.name": ("cifar100", "cifar10", "digits"),
    "teacher.on_mismatch": ("stop", "warn"),
    "mixup.kind": ("none", "batch", "example"),
}
# Field: (lowest, lowest is allowed, highest, highest is allowed).
_RANGES = {
    "seed": (0, True, 2**31 - 1, True),
    "batch_size": (1, True, 2**20, True),
    "total_epochs": (0, False, 1e6, True),
    "total_steps": (1, True, 2**31 - 1, True),
    "learning_rate": (0, False, 1e3, True),
    "warmup_epochs": (0, True, 1e6, True),
    "weight_decay": (0, True, 1, False),
    "optimizer.momentum": (0, True, 1, False),
    "optimizer.clip_norm": (0, True, 1e9, True),
    "dataset.val_examples": (1, True, 2**31 - 1, True),
    "dataset.split_seed": (0, True, 2**31 - 1, True),
    "teacher.claimed_top1": (0, True, 100, True),
    "teacher.tolerance_points": (0, True, 100, True),
    "student.dropout": (0, True, 1, False),
    "distill.temperature": (0, False, 1e4, True),
    "distill.label_weight": (0, True, 1, True),
    "augment.crop_pad_px": (0, True, 16, True),
    "checkpoint_every_steps": (1, True, 2**31 - 1, True),
    "keep_checkpoints": (1, True, 1000, True),
    "eval_every_epochs": (0, False, 1e6, True),
    "log_every_steps": (1, True, 2**31 - 1, True),
    "num_devices": (0, True, 4096, True),
}


def get_field(config: ConfigDict, path: str) -> Any:
    """Return the value at a dotted path such as `mixup.kind`."""
    value: Any = config
    for name in path.split("."):
        value = value[name]
    return value


def check(config: ConfigDict) -> None:
    """Raise one `UserError` that lists every value that cannot be; nothing is read or started."""
    problems = _missing_fields(config)
    if not problems:
        for path, choices in _CHOICES.items():
            value = get_field(config, path)
            if value not in choices:
                problems.append(f"config.{path} is {value!r}, expected {' or '.join(choices)}")
        for path, (low, with_low, high, with_high) in _RANGES.items():
            value = get_field(config, path)
            if value is None and path in ("total_steps", "teacher.claimed_top1"):
                continue
            above = value >= low if with_low else value > low
            below = value <= high if with_high else value < high
            if not (above and below):  # NaN fails both
                ends = f"{'[' if with_low else '('}{low:g}, {high:g}{']' if with_high else ')'}"
                problems.append(f"config.{path} is {value}, expected a number in {ends}")
        problems += _check_networks(config)
    if problems:
        raise UserError("; ".join(problems))


def _missing_fields(config: ConfigDict) -> list[str]:
    """Say which fields of `default_config` a config lacks, and which it has too many."""
    expected, given = set(flatten(default_config())), set(flatten(config))
    return [f"config.{path} is missing" for path in sorted(expected - given)] + [
        f"config.{path} is not a field of kd_jax" for path in sorted(given - expected)
    ]


def _check_networks(config: ConfigDict) -> list[str]:
    problems = []
    for path in ("student.arch", "teacher.arch"):
        arch = get_field(config, path)
        if arch not in models.MODELS and not (path == "teacher.arch" and arch == ""):
            known = ", ".join(models.MODELS)
            problems.append(f"config.{path} is {arch!r}, expected one of {known}")
    if config.distill.label_weight < 1 and not config.teacher.weights:
        problems.append(
            "config.teacher.weights is empty, expected the teacher to distil from: a PyTorch "
            f"file{f' of {config.teacher.arch}' if config.teacher.arch else ''}, a directory made "
            "by import_teacher, or the workdir of a finished run (configs/teacher.py trains one)"
        )
    return problems


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Return the config as dotted paths to values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Return the config as JSON text, fields in the order of `default_config`."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Return the config of a run, from its `config.json`."""
    config = default_config()
    config.update(ConfigDict(json.loads(text)))
    return config.lock()


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Return `field: old -> new` for every field that a resumed run may not change."""
    before, after = flatten(old), flatten(new)
    return [
        f"{path}: {before.get(path)!r} -> {after.get(path)!r}"
        for path in before | after
        if path not in MAY_CHANGE and before.get(path) != after.get(path)
    ]
