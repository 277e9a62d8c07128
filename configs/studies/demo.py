r"""A small study on scikit-learn's handwritten digits: what `make study` runs, in a few minutes.

Temperature and mixup, two seeds each; the teacher is a run of the study itself.

    python -m kd_jax.study --config=configs/studies/demo.py --workdir=studies/demo
    python -m kd_jax.study --config=configs/studies/demo.py:epochs=30,seeds=5 --workdir=studies/more
"""

from kd_jax.config import default_config
from kd_jax.study import spec


def get_study(argument=""):
    options = spec.options(argument, epochs=6.0, seeds=2)
    teacher = _digits()
    teacher.distill.label_weight = 1.0
    teacher.mixup.kind = "none"
    teacher.total_epochs = 9.0
    runs = spec.of_seeds("teacher", teacher, 1)
    student = _digits()
    student.learning_rate = 1e-2  # enough for a few epochs with mixup
    student.teacher.arch = "resnet8"
    student.total_epochs = options["epochs"]
    fields = {"mixup.kind": ("none", "batch"), "distill.temperature": (2.0, 10.0)}
    for row, config in spec.grid(student, fields).items():
        runs += spec.of_seeds(row, config, options["seeds"], teacher=runs[0].name)
    return spec.Study("Temperature and mixup on the digits", tuple(runs), runs[1].row)


def _digits():
    config = default_config()
    config.dataset.name = "digits"
    config.dataset.val_examples = 144
    config.augment.flip = False  # a mirrored digit is another digit or none
    config.augment.crop_pad_px = 3
    config.student.arch = "resnet8"
    config.batch_size = 32
    config.learning_rate = 3e-3
    config.eval_every_epochs = 3.0
    return config
