r"""Distil the study's third teacher, MobileNetV2_x0_75, into a MobileNetV3-small on CIFAR-100.

    python -m kd_jax.import_teacher --arch=mobilenetv2_x0_75 --src=published \
        --out=teachers/mobilenetv2_x0_75
    python -m kd_jax.main --config=configs/mbv2.py --workdir=runs/mbv2 \
        --config.teacher.weights=teachers/mobilenetv2_x0_75

`--config=configs/mbv2.py:recipe=NAME` takes another recipe than function matching, and
`recipe=crd_protocol+NAME` several; see `python -m kd_jax.recipes`.
"""

from kd_jax import recipes


def get_config(argument=""):
    config = recipes.experiment(argument)
    config.teacher.arch = "mobilenetv2_x0_75"
    return config
