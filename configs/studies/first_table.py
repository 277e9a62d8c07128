r"""Five ways to train the same student at the same budget, with ResNet44 as teacher.

    python -m kd_jax.study --config=configs/studies/first_table.py --workdir=studies/first_table \
        --teachers=teachers

`scratch` as the study ran it; its agreement is with the teacher that it never saw.
"""

from kd_jax import recipes
from kd_jax.study import spec

_NO_MIXUP = {"mixup.kind": "none"}
_ROWS = {
    "scratch": ("scratch", {}),
    "seed": ("seed", {}),
    "funmatch": ("funmatch", {}),
    "hinton": ("hinton", {}),
    "funmatch, no mixup": ("funmatch", _NO_MIXUP),
}


def get_study(argument=""):
    chosen = spec.options(argument, epochs=25.0, seeds=1, fraction=1.0)
    listed = []
    for row, (recipe, changes) in _ROWS.items():
        config = recipes.apply(recipe)
        config.update_from_flattened_dict(changes)
        config.teacher.arch = "resnet44"
        config.total_epochs = chosen["epochs"]
        spec.take_fraction(config, chosen["fraction"])
        published = 31.53 if row == "scratch" else None
        source = "Roset, Thomas, Lisboa 2023, Table 2" if published else ""
        listed += spec.of_seeds(row, config, chosen["seeds"], published=published, source=source)
    return spec.Study("Five recipes at equal budgets", tuple(listed))
