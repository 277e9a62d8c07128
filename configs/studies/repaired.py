r"""What each fault of the study's set-up costs: each repaired alone, then all together.

    python -m kd_jax.study --config=configs/studies/repaired.py --workdir=studies/repaired \
        --teachers=teachers
    python -m kd_jax.study --config=configs/studies/repaired.py:teacher=vgg11_bn,epochs=25 ...

The repairs: the student variant for images of 32 pixels; each network's own normalisation; crop
and flip. Everything else is recipe `seed`. The last row is recipe `funmatch` with the study's
student.
"""

from kd_jax import recipes
from kd_jax.report import table2
from kd_jax.study import spec

_STUDENT = {"student.arch": "mobilenet_v3_small_cifar"}
_NORMALISATION = {
    "teacher.normalisation": "own",
    "teacher.on_mismatch": "stop",
    "student.normalisation": "dataset",
}
_VIEWS = {"augment.crop_pad_px": 4, "augment.flip": True}
_ROWS = {
    "seed": ("seed", {}),
    "seed, student for 32 pixels": ("seed", _STUDENT),
    "seed, own normalisation": ("seed", _NORMALISATION),
    "seed, crop and flip": ("seed", _VIEWS),
    "seed, all three repaired": ("seed", _STUDENT | _NORMALISATION | _VIEWS),
    "funmatch": ("funmatch", {}),
}


def get_study(argument=""):
    options = spec.options(argument, teacher="resnet44", epochs=400.0, seeds=1, fraction=1.0)
    runs = []
    student = table2.find_student(
        options["teacher"], mixup=True, learning_rate=1e-3, temperature=5.0
    )
    for row, (recipe, repairs) in _ROWS.items():
        config = recipes.apply(recipe)
        config.update_from_flattened_dict(repairs)
        config.teacher.arch = options["teacher"]
        config.total_epochs = options["epochs"]
        spec.take_fraction(config, options["fraction"])
        published = student.top1 if student and row == "seed" else None
        source = table2.CITATION if published else ""
        runs += spec.of_seeds(row, config, options["seeds"], published=published, source=source)
    return spec.Study(f"Three faults repaired, teacher {options['teacher']}", tuple(runs))
