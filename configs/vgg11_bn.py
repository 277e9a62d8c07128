r"""Distil the study's second teacher, VGG11 with batch norm, into a MobileNetV3-small on CIFAR-100.

    python -m kd_jax.import_teacher --arch=vgg11_bn --src=published --out=teachers/vgg11_bn
    python -m kd_jax.main --config=configs/vgg11_bn.py --workdir=runs/vgg11_bn \
        --config.teacher.weights=teachers/vgg11_bn

`--config=configs/vgg11_bn.py:recipe=NAME` takes another recipe than function matching, and
`recipe=crd_protocol+NAME` several; see `python -m kd_jax.recipes`.
"""

from kd_jax import recipes


def get_config(argument=""):
    config = recipes.experiment(argument)
    config.teacher.arch = "vgg11_bn"
    return config
