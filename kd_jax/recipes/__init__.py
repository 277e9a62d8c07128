"""Recipes by name: sets of changes to the default config, each with its source.

    python -m kd_jax.recipes                      every recipe and its source
    python -m kd_jax.recipes diff funmatch seed   what differs between two

`--config=configs/mbv2.py:recipe=seed` applies one. Overrides come after it, field by field. Imports
no JAX.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.runtime.errors import UserError


def funmatch(config: ConfigDict) -> None:
    """Function matching: no labels, one view, aggressive mixup, patience. The default.

    Source: Beyer et al. 2021; google-research/big_vision.
    """


def seed(config: ConfigDict) -> None:
    """The study's code with its faults, so that they can be repaired one by one.

    One normalisation (mean 0.5, std 0.5) for both networks, which lowers the teacher's accuracy; KL
    summed over the batch, without T squared; mixup of each example with any other of the training
    set; no crop and no flip; Adam with L2; half of the test split as validation.

    Source: javi99/understanding_knowledge_distillation; Roset, Thomas, Lisboa 2023.
    """
    config.update_from_flattened_dict(
        {
            "teacher.normalisation": "half",
            "teacher.on_mismatch": "warn",  # since the teacher misses its claim
            "student.normalisation": "half",
            "dataset.validation": "half_of_test",
            "distill.squared_temperature": False,
            "distill.reduction": "sum",
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
    config.distill.label_weight = 0.1
    config.mixup.kind = "none"


def scratch(config: ConfigDict) -> None:
    """No teacher: cross-entropy for 25 epochs without augmentation, as in the study.

    Training ends after 5 validations without a new best, and the best is kept. The validation split
    is held out of train; that of the study was a part of test.

    Source: javi99/understanding_knowledge_distillation; the 5 is ours.
    """
    config.update_from_flattened_dict(
        {
            "distill.label_weight": 1.0,
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
    recipe.__name__: recipe for recipe in (funmatch, seed, hinton, scratch)
}


def experiment(argument: str = "") -> ConfigDict:
    """Return the default config under a recipe, for a file in `configs/`.

    Args:
      argument: the part of `--config=FILE:ARGUMENT` after the colon: empty, or `recipe=NAME`.

    Raises:
      ValueError: the argument is neither.
    """
    key, _, name = argument.partition("=")
    if argument and (key != "recipe" or name not in RECIPES):
        raise ValueError(f"{argument!r} is no recipe: expected recipe={'|'.join(RECIPES)}")
    return apply(name or "funmatch")


def apply(name: str) -> ConfigDict:
    """Return the default config under the recipe `name`."""
    config = config_lib.default_config()
    RECIPES[name](config)
    return config


def difference(first: str, second: str) -> list[str]:
    """Return `field: value under first -> value under second` for every field that differs.

    Raises:
      UserError: one of the names is no recipe.
    """
    for name in (first, second):
        if name not in RECIPES:
            raise UserError(f"{name!r} is no recipe: expected one of {', '.join(RECIPES)}")
    before, after = (config_lib.flatten(apply(name)) for name in (first, second))
    return [f"{f}: {before[f]!r} -> {after[f]!r}" for f in before if before[f] != after[f]]
