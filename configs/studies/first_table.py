r"""Five ways to train the same student at the same budget, with ResNet44 as teacher.

    python -m kd_jax.study --config=configs/studies/first_table.py --workdir=studies/first_table \
        --teachers=teachers

`scratch` is trained as in the study; its agreement is with the teacher, which it does not use.
"""

from kd_jax import recipes
from kd_jax.report import table2
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
    options = spec.options(argument, epochs=25.0, seeds=1, fraction=1.0)
    runs = []
    scratch = table2.find_student(teacher=None, mixup=False, learning_rate=1e-3, temperature=1.0)
    for row, (recipe, changes) in _ROWS.items():
        config = recipes.apply(recipe)
        config.update_from_flattened_dict(changes)
        config.teacher.arch = "resnet44"
        config.total_epochs = options["epochs"]
        spec.take_fraction(config, options["fraction"])
        published = scratch.top1 if row == "scratch" else None
        source = table2.CITATION if published else ""
        runs += spec.of_seeds(row, config, options["seeds"], published=published, source=source)
    return spec.Study("Five recipes at equal budgets", tuple(runs))
