r"""What each fault of the study's set-up costs: repaired one by one, and all together.

    python -m kd_jax.study --config=configs/studies/repaired.py --workdir=studies/repaired \
        --teachers=teachers
    python -m kd_jax.study --config=configs/studies/repaired.py:teacher=vgg11_bn,epochs=25 ...

The student that was made for images of 32 pixels; pixels under each network's own normalisation;
crop and flip. Everything else is recipe `seed`. Beside them the recipe `funmatch`, with the study's
student.
"""

from kd_jax import recipes
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
# Top-1 of Table 2 with mixup, learning rate 0.001, T = 5 and 400 epochs.
_PUBLISHED = {"resnet44": 40.67, "vgg11_bn": 37.26, "mobilenetv2_x0_75": 42.22}
_SOURCE = "Roset, Thomas, Lisboa 2023, Table 2"


def get_study(argument=""):
    chosen = spec.options(argument, teacher="resnet44", epochs=400.0, seeds=1, fraction=1.0)
    listed = []
    for row, (recipe, repairs) in _ROWS.items():
        config = recipes.apply(recipe)
        config.update_from_flattened_dict(repairs)
        config.teacher.arch = chosen["teacher"]
        config.total_epochs = chosen["epochs"]
        spec.take_fraction(config, chosen["fraction"])
        published = _PUBLISHED.get(chosen["teacher"]) if row == "seed" else None
        source = _SOURCE if published else ""
        listed += spec.of_seeds(row, config, chosen["seeds"], published=published, source=source)
    return spec.Study(f"Three faults repaired, teacher {chosen['teacher']}", tuple(listed))
