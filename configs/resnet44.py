r"""Distil the study's first teacher, ResNet44, into a MobileNetV3-small on CIFAR-100.

    python -m kd_jax.main --config=configs/resnet44.py --workdir=runs/resnet44 \
        --config.teacher.weights=cifar100_resnet44.pth
"""

from kd_jax.config import default_config


def get_config():
    config = default_config()
    config.teacher.arch = "resnet44"
    config.teacher.claimed_top1 = 71.63  # chenyaofo/pytorch-cifar-models, measured again here
    return config
