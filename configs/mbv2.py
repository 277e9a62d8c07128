r"""Distil the study's third teacher, MobileNetV2_x0_75, into a MobileNetV3-small on CIFAR-100.

    python -m kd_jax.main --config=configs/mbv2.py --workdir=runs/mbv2 \
        --config.teacher.weights=cifar100_mobilenetv2_x0_75.pth
"""

from kd_jax.config import default_config


def get_config():
    config = default_config()
    config.teacher.arch = "mobilenetv2_x0_75"
    config.teacher.claimed_top1 = 73.61  # chenyaofo/pytorch-cifar-models
    return config
