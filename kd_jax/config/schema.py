"""Every field of an experiment, its default, and what it may be. Nothing else holds a default.

`default_config` gives the recipe `funmatch`: label-free function matching on CIFAR-100 (Beyer et
al. 2021). A file in `configs/` starts from it and changes what its experiment is about. The
config is locked, so a misspelt override fails and names the nearest field; `checks.check` looks at
the values before any data is read.
"""

from __future__ import annotations

import json
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Fields that do not touch the training's trajectory, so a run may be resumed under other values;
# but `eval_every_epochs` where `patience` counts validations, and the number of devices where batch
# norm is not synchronised (`provenance.check_devices`).
RESUME_MUTABLE = (
    "checkpoint_every_steps",
    "eval_every_epochs",
    "log_every_steps",
    "keep_checkpoints",
    "num_devices",
    "steps_per_call",
    "dataset.data_dir",
    "dataset.download",
    "dataset.resident",
    "dataset.device_budget_mb",
    "teacher.weights",  # identified by arrays, arch and normalisation, as the next
    "teacher.ensemble",
    "teacher.tolerance_points",
    "teacher.on_mismatch",
)

# Fields that may be None, and what they are else.
MAY_BE_NONE: dict[str, type] = {
    "total_steps": int, "teacher.claimed_top1": float, "student.init_seed": int
}  # fmt: skip


def default_config() -> ConfigDict:
    """Return the default experiment; every field a config or an override can set is here."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 512  # of the whole step, over all devices
    # Parts that the batch is computed in, one after another: for batches that do not fit. Batch
    # norm, and the loss dist, see a part at a time, so other values are another training.
    config.accumulate = 1
    config.total_epochs = 300.0
    config.total_steps = placeholder(int)  # when given, instead of total_epochs
    config.learning_rate = 1e-3  # at the peak of the schedule
    config.warmup_epochs = 5.0  # linear from 0, at most a tenth of the run
    config.weight_decay = 1e-4
    # Validations without a better one before training stops and the best is kept; 0: never. For
    # training from labels: function matching only gets better with patience.
    config.patience = 0

    config.schedule = ConfigDict()  # of the learning rate, after the warm-up
    config.schedule.name = "cosine"  # one of optim.SCHEDULES
    config.schedule.step_at = (0.5, 0.75)  # step: shares of the run after which the rate drops
    config.schedule.step_factor = 0.1  # step: by what it drops
    config.schedule.cooldown = 0.2  # wsd: share of the run that falls linearly to 0

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # one of optim.OPTIMIZERS
    config.optimizer.momentum = 0.9  # sgd: of the velocity
    config.optimizer.nesterov = True  # sgd
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0: no clipping
    # decoupled: weights shrink by weight_decay * schedule / peak, whatever the learning rate.
    # l2: weight_decay * weights is added to the gradient.
    config.optimizer.decay = "decoupled"
    config.optimizer.decay_on = "kernels"  # kernels | all

    config.dataset = ConfigDict()
    config.dataset.name = "cifar100"  # of tfds; or digits; or folder, of images in data_dir
    config.dataset.data_dir = ""  # empty: TFDS_DATA_DIR, else tfds' own default
    config.dataset.train_split = "train"
    config.dataset.test_split = "test"
    config.dataset.image_size = 0  # scale and crop to so many pixels a side; 0: as they are
    config.dataset.download = False  # let tfds download what is not there
    config.dataset.val_examples = 5000  # held out of train, stratified
    # auto: on the devices if the training images fit the budget; else always | never. What is not
    # there is gathered on the host and sent ahead. The training is the same.
    config.dataset.resident = "auto"
    config.dataset.device_budget_mb = 4000.0
    config.dataset.split_seed = 0  # of that hold-out
    # half_of_test: nothing is held out, and validation is a random half of the test split.
    config.dataset.validation = "held_out"  # held_out | half_of_test

    config.teacher = ConfigDict()
    config.teacher.arch = ""  # empty: no teacher (or what the weights say)
    config.teacher.weights = ""  # a .pth file, an imported directory, or a finished run
    config.teacher.claimed_top1 = placeholder(float)  # percent on test; None: as the weights say
    config.teacher.tolerance_points = 0.2
    config.teacher.on_mismatch = "stop"  # stop | warn
    config.teacher.normalisation = "own"  # own | half (mean 0.5, std 0.5, as the study's code)
    config.teacher.dtype = "float32"  # float32 | bfloat16, of its computations
    # Further teachers: directories made by import_teacher, or of finished runs.
    config.teacher.ensemble = ()
    config.teacher.shares = ()  # of all teachers, in order; empty: equal
    # probabilities: one target, the mean of the teachers' softened predictions.
    # losses: the mean of the losses to each.
    config.teacher.combine = "probabilities"  # probabilities | losses

    config.student = ConfigDict()
    config.student.arch = "mobilenet_v3_small"
    config.student.dropout = 0.0
    # Share of the old in the running average of the weights, which is then what is evaluated and
    # kept; reached gradually. 0: no average.
    config.student.ema_decay = 0.0
    config.student.normalisation = "dataset"  # dataset | half
    config.student.dtype = "float32"  # float32 | bfloat16, of its computations
    config.student.init_seed = placeholder(int)  # of the first values; None: the seed above
    config.student.weights = ""  # to start from, as teacher.weights; empty: from the seed
    config.student.freeze = (
        # Regular expression: parameters whose path it finds stay as they are, and so do the
        # running statistics of a batch norm all of whose parameters it finds.
        ""
    )

    config.batch_norm = ConfigDict()
    # Statistics over the whole batch. False: of each device's part, so the number of devices then
    # changes the training, and must not change at a resume; it saves two reductions a norm.
    config.batch_norm.sync = True

    config.distill = ConfigDict()
    config.distill.temperature = 5.0
    config.distill.loss = "forward_kl"  # one of losses.NAMES
    config.distill.squared_temperature = True  # times T^2, where the loss has a temperature
    config.distill.standardize_logits = False  # of both, before the loss
    config.distill.reduction = "mean"  # mean | sum, over the global batch
    # same: all networks see the same pixels. independent: the teacher's crop and flip are its own.
    # fixed: the teacher's logits of the clean images, computed once.
    config.distill.view = "same"  # same | independent | fixed
    config.distill.dkd_target, config.distill.dkd_others = 1.0, 8.0  # dkd: alpha and beta
    config.distill.dist_inter, config.distill.dist_intra = 1.0, 1.0  # dist: beta and gamma
    # loss = label_weight * cross-entropy + (1 - label_weight) * the distillation loss.
    # 0 is label-free; 1 is training from scratch, where a teacher only serves to compare.
    config.distill.label_weight = 0.0
    config.distill.label_smoothing = 0.0  # share of a label that is spread over all classes

    config.mixup = ConfigDict()
    # One lambda for the batch, for each group of neighbours in it (8 groups are what 8 devices with
    # a lambda each would do), or for each example.
    config.mixup.kind = "batch"  # none | batch | group | example
    config.mixup.groups = 1  # group: how many; they divide the batch
    config.mixup.alpha = 1.0  # lambda ~ Beta(alpha, alpha); 1 is uniform
    config.mixup.partner = "roll"  # one of batches.PARTNERS
    config.mixup.method = "mixup"  # mixup | cutmix (a box of the partner's pixels)

    config.augment = ConfigDict()
    config.augment.crop_pad_px = 4
    # Least share of the image's area that a crop has before it is scaled back to the image's size;
    # its shape is random too. 1: no such crop. For images that are larger than their subject.
    config.augment.crop_area = 1.0
    config.augment.flip = True

    config.checkpoint_every_steps = 500
    config.keep_checkpoints = 2  # the newest; the best on validation is kept besides
    config.eval_every_epochs = 1.0
    config.log_every_steps = 10
    # Steps that the devices make before they come back to Python, for networks so small that they
    # would wait for it. The training is the same.
    config.steps_per_call = 1
    config.num_devices = 0  # 0: all of them; on CPU, one a core
    return config


def get_field(config: ConfigDict, path: str) -> Any:
    """Return the value at a dotted path such as `mixup.kind`."""
    value: Any = config
    for name in path.split("."):
        value = value[name]
    return value


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
    fields = json.loads(text, object_hook=_with_tuples)
    config.update(ConfigDict(fields))
    return config.lock()


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Undo what JSON does to tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Return `field: old -> new` for every field that a resumed run may not change."""
    before, after = flatten(old), flatten(new)
    may_change = set(RESUME_MUTABLE) - ({"eval_every_epochs"} if old.patience else set())
    return [
        f"{path}: {before.get(path)!r} -> {after.get(path)!r}"
        for path in before | after
        if path not in may_change and before.get(path) != after.get(path)
    ]
