r"""Distil the study's first teacher, ResNet44, into a MobileNetV3-small on CIFAR-100.

    python -m kd_jax.import_teacher --arch=resnet44 --src=published --out=teachers/resnet44
    python -m kd_jax.main --config=configs/resnet44.py --workdir=runs/resnet44 \
        --config.teacher.weights=teachers/resnet44

`--config=configs/resnet44.py:recipe=NAME` takes another recipe than function matching, and
`recipe=crd_protocol+NAME` several; see `python -m kd_jax.recipes`.
"""

from kd_jax import recipes


def get_config(argument=""):
    config = recipes.experiment(argument)
    config.teacher.arch = "resnet44"
    return config
