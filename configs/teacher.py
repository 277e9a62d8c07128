"""Train a teacher from labels, with the recipe its published weights were made with.

    python -m kd_jax.main --config=configs/teacher.py:resnet44 --workdir=runs/teacher_resnet44

Source: chenyaofo/pytorch-cifar-models: SGD with Nesterov momentum, L2 on every weight, cosine
from the first step, crop and flip; dropout where its networks have it. Its 200 epochs are days on a
CPU: total_epochs shortens them. What it did not use is one field away: `optimizer.decay_on=kernels`
(no decay on biases and norms), `distill.label_smoothing`, `student.ema_decay`.
"""

from kd_jax.config import default_config

_DROPOUT = {"vgg": 0.5, "mobilenetv2": 0.2}  # before the linear layers, by family


def get_config(arch):
    config = default_config()
    config.student.arch = arch
    config.student.dropout = next(
        (rate for family, rate in _DROPOUT.items() if arch.startswith(family)), 0.0
    )
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
