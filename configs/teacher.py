"""Train a teacher from labels, with the recipe its published weights were made with.

    python -m kd_jax.main --config=configs/teacher.py:resnet44 --workdir=runs/teacher_resnet44

Source: chenyaofo/pytorch-cifar-models: SGD with Nesterov momentum, L2 on every weight, cosine
from the first step, crop and flip. Its 200 epochs are days on a CPU: total_epochs shortens them.
"""

from kd_jax.config import default_config


def get_config(arch):
    config = default_config()
    config.student.arch = arch
    config.distill.label_weight = 1.0
    config.mixup.kind = "none"
    config.batch_size = 256
    config.total_epochs = 200.0
    config.warmup_epochs = 0.0
    config.learning_rate = 0.1
    config.weight_decay = 5e-4
    config.optimizer.name = "sgd"
    config.optimizer.decay = "l2"
    config.optimizer.decay_on = "all"
    config.optimizer.clip_norm = 0.0
    return config
