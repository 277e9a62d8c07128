"""Recipes by name: sets of changes to the default config, each with its source.

    python -m kd_jax.recipes                      every recipe and its source
    python -m kd_jax.recipes diff funmatch seed   what differs between two

`--config=configs/mbv2.py:recipe=seed` applies one. `recipe=crd_protocol+dkd` joins several, from
left to right: where two set a field, the later one wins. Every recipe sets the whole loss, so only
those that say much besides (`crd_protocol`, `seed`) may stand before another. Overrides come after
all of them, field by field. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.runtime.errors import UserError

_JOIN = "+"


def funmatch(config: ConfigDict) -> None:
    """Function matching: no labels, one view, aggressive mixup, patience. The default.

    Source: Beyer et al. 2021; google-research/big_vision.
    """
    _set_loss(config, {"mixup.kind": "batch", "mixup.partner": "roll"})


def seed(config: ConfigDict) -> None:
    """The study's code with its faults, so that they can be repaired one by one.

    One normalisation (mean 0.5, std 0.5) for both networks, which lowers the teacher's accuracy; KL
    summed over the batch, without T squared; mixup of each example with any other of the training
    set; no crop and no flip; Adam with L2; half of the test split as validation.

    Source: javi99/understanding_knowledge_distillation; Roset, Thomas, Lisboa 2023.
    """
    _set_loss(config, {"distill.squared_temperature": False, "distill.reduction": "sum"})
    config.update_from_flattened_dict(
        {
            "teacher.normalisation": "half",
            "teacher.on_mismatch": "warn",  # since the teacher misses its claim
            "student.normalisation": "half",
            "dataset.validation": "half_of_test",
            "mixup.kind": "example",
            "mixup.partner": "uniform",
            "augment.crop_pad_px": 0,
            "augment.flip": False,
            "optimizer.decay": "l2",
            "optimizer.decay_on": "all",
            "optimizer.clip_norm": 0.0,
            "schedule.name": "cosine_by_epoch",
            "warmup_epochs": 0.0,
        }
    )


def hinton(config: ConfigDict) -> None:
    """Loss from labels and teacher: 0.1 cross-entropy + 0.9 T^2 KL; crop and flip, no mixup.

    Source: Hinton et al. 2015, section 2, which gives the labels "a considerably lower weight"; the
    number is ours.
    """
    _set_loss(config, {"distill.label_weight": 0.1, "mixup.kind": "none"})


def dkd(config: ConfigDict) -> None:
    """Decoupled KD: cross-entropy + T^2 (1 target + 8 others) with T = 4; crop and flip, no mixup.

    The distillation loss warms up over 20 epochs: with every step here, with every epoch in the
    authors' code. Their weight of the others depends on the pair: 2 for ResNet56 to ResNet20 and
    for ResNet110 to ResNet32, 6 under VGG13 and between wide ResNets, else 8.

    Source: Zhao et al. 2022; megvii-research/mdistiller, configs/cifar100/dkd.
    """
    changes = {
        "distill.loss": "dkd",
        "distill.temperature": 4.0,
        "distill.dkd_target": 1.0,
        "distill.dkd_others": 8.0,
        "distill.warmup_epochs": 20.0,
        "mixup.kind": "none",
    }
    _set_loss(config, _weights(labels=1.0, teacher=1.0) | changes)


def dist(config: ConfigDict) -> None:
    """DIST: cross-entropy + 2 T^2 (inter + intra) with T = 4; crop and flip, no mixup.

    These are the values for CIFAR-100; for ImageNet the authors take T = 1.

    Source: Huang et al. 2022; hunto/image_classification_sota,
    configs/strategies/distill/dist_cifar.yaml.
    """
    changes = {
        "distill.loss": "dist",
        "distill.temperature": 4.0,
        "distill.dist_inter": 2.0,
        "distill.dist_intra": 2.0,
        "mixup.kind": "none",
    }
    _set_loss(config, _weights(labels=1.0, teacher=1.0) | changes)


def lskd(config: ConfigDict) -> None:
    """Standardised logits: 0.1 cross-entropy + 9 T^2 KL with T = 2; crop and flip, no mixup.

    The standard deviation here divides by the number of classes, in the authors' code by one less:
    with 100 classes, as if T were half a percent lower here. For some pairs they take T = 3 or 4,
    and weights from 1 to 12.

    Source: Sun et al. 2024; sunshangquan/logit-standardization-KD, README and logs.
    """
    changes = {
        "distill.standardize_logits": True,
        "distill.temperature": 2.0,
        "mixup.kind": "none",
    }
    _set_loss(config, _weights(labels=0.1, teacher=9.0) | changes)


def crd_protocol(config: ConfigDict) -> None:
    """KD as CIFAR-100's tables since CRD train it; `crd_protocol+dkd` trains another loss so.

    Batch 64; 240 epochs of SGD at 0.05, divided by 10 after 150, 180 and 210; momentum 0.9 without
    Nesterov; L2 of 5e-4 on all parameters; no warm-up, no clipping; crop by 4 pixels, flip, no
    mixup. The loss is 0.1 cross-entropy + 0.9 T^2 KL with T = 4. MobileNetV2 and ShuffleNet are
    trained at 0.01 there.

    What differs: validation is held out of train, 5,000 of CIFAR-100's 50,000 images, where the
    authors validate on the test split. `result.json` has both numbers that tables report:
    `test_top1` of the last epoch, and in `best` that of the epoch that was best on validation.
    RepDistiller reports the last epoch; mdistiller prints the best one on test, never a lower one.

    Source: Tian et al. 2020; HobbitLong/RepDistiller, train_student.py.
    """
    _set_loss(config, _weights(labels=0.1, teacher=0.9) | {"distill.temperature": 4.0})
    config.update_from_flattened_dict(
        {
            "mixup.kind": "none",
            "augment.crop_pad_px": 4,
            "augment.flip": True,
            "batch_size": 64,
            "total_epochs": 240.0,
            "learning_rate": 0.05,
            "warmup_epochs": 0.0,
            "weight_decay": 5e-4,
            "patience": 0,
            "schedule.name": "step",
            "schedule.step_at": (150 / 240, 180 / 240, 210 / 240),
            "schedule.step_factor": 0.1,
            "optimizer.name": "sgd",
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": False,
            "optimizer.decay": "l2",
            "optimizer.decay_on": "all",
            "optimizer.clip_norm": 0.0,
        }
    )


def scratch(config: ConfigDict) -> None:
    """No teacher: cross-entropy for 25 epochs without augmentation, as in the study.

    Training ends after 5 validations without a new best, and the best is kept. The validation split
    is held out of train; that of the study was a part of test.

    Source: javi99/understanding_knowledge_distillation; the 5 is ours.
    """
    _set_loss(config, {"distill.label_weight": 1.0})
    config.update_from_flattened_dict(
        {
            "mixup.kind": "none",
            "augment.crop_pad_px": 0,
            "augment.flip": False,
            "batch_size": 128,
            "total_epochs": 25.0,
            "warmup_epochs": 0.0,
            "patience": 5,
            "optimizer.decay": "l2",
            "optimizer.decay_on": "all",
            "optimizer.clip_norm": 0.0,
        }
    )


RECIPES: dict[str, Callable[[ConfigDict], None]] = {
    recipe.__name__: recipe
    for recipe in (funmatch, seed, hinton, dkd, dist, lskd, crd_protocol, scratch)
}
# Those that are still worth having when another one sets the loss.
_SET_UPS = ("seed", "crd_protocol")
# The loss that a recipe starts from, so that it leaves nothing of the loss of a recipe before it.
_LOSS = {
    "distill.loss": "forward_kl",
    "distill.squared_temperature": True,
    "distill.standardize_logits": False,
    "distill.reduction": "mean",
    "distill.label_weight": 0.0,
    "distill.total_weight": 1.0,
    "distill.warmup_epochs": 0.0,
}


def _set_loss(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    config.update_from_flattened_dict(_LOSS | dict(changes))


def _weights(labels: float, teacher: float) -> dict[str, Any]:
    """Return the fields that weigh the cross-entropy and the distillation loss so."""
    total = labels + teacher
    return {"distill.label_weight": labels / total, "distill.total_weight": total}


def experiment(argument: str = "", config: ConfigDict | None = None) -> ConfigDict:
    """Return a config under a recipe, for a file in `configs/`.

    Args:
      argument: the part of `--config=FILE:ARGUMENT` after the colon: empty, `recipe=NAME`, or
        `recipe=NAME+NAME`.
      config: what the recipes change, in place; None for the default config.

    Raises:
      ValueError: the argument is neither.
      UserError: a name is no recipe, or the recipes cannot be joined.
    """
    key, _, names = argument.partition("=")
    if argument and key != "recipe":
        raise ValueError(
            f"{argument!r} is no recipe: expected recipe={'|'.join(RECIPES)}, or several joined "
            f"by {_JOIN}"
        )
    return apply(names if argument else "funmatch", config)


def apply(names: str, config: ConfigDict | None = None) -> ConfigDict:
    """Return a config, by default the default one, after a recipe, or several joined by `+`.

    Raises:
      UserError: a name is no recipe, or the recipes cannot be joined.
    """
    config = config_lib.default_config() if config is None else config
    for name in _split(names):
        RECIPES[name](config)
    return config


def _split(text: str) -> list[str]:
    """Return the names of recipes in `NAME+NAME`, checked."""
    names = text.split(_JOIN)
    for name in names:
        if name not in RECIPES:
            raise UserError(
                f"{name!r} is no recipe: expected one of {', '.join(RECIPES)}, or several joined "
                f"by {_JOIN}"
            )
    for number, name in enumerate(names[:-1]):
        if name in names[number + 1 :]:
            raise UserError(f"recipe {text!r} has {name} twice, expected it once")
        if name not in _SET_UPS:
            raise UserError(
                f"recipe {text!r} would lose the loss of {name}, since {names[number + 1]} sets "
                f"the loss anew: expected {name} last, as in crd_protocol{_JOIN}{name}"
            )
    return names


def difference(first: str, second: str) -> list[str]:
    """Return `field: value under first -> value under second` for every field that differs.

    Args:
      first, second: recipes, or several joined by `+`.

    Raises:
      UserError: a name is no recipe, or the recipes cannot be joined.
    """
    before, after = (config_lib.flatten(apply(names)) for names in (first, second))
    return [f"{f}: {before[f]!r} -> {after[f]!r}" for f in before if before[f] != after[f]]
