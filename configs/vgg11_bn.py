r"""Distil the study's second teacher, VGG11 with batch norm, into a MobileNetV3-small on CIFAR-100.

    python -m kd_jax.main --config=configs/vgg11_bn.py --workdir=runs/vgg11_bn \
        --config.teacher.weights=cifar100_vgg11_bn.pth
"""

from kd_jax.config import default_config


def get_config():
    config = default_config()
    config.teacher.arch = "vgg11_bn"
    config.teacher.claimed_top1 = 70.78  # chenyaofo/pytorch-cifar-models
    return config
