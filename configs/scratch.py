"""Train the student alone, from labels: what distillation is compared with.

Give `--config.teacher.weights` to measure, beside the accuracy, how far the student agrees with a
teacher that it never saw.

    python -m kd_jax.main --config=configs/scratch.py --workdir=runs/scratch
"""

from kd_jax.config import default_config


def get_config():
    config = default_config()
    config.distill.label_weight = 1.0
    config.mixup.kind = "none"
    config.batch_size = 128
    config.total_epochs = 25.0
    config.warmup_epochs = 0.0
    return config
