"""Train the student alone, from labels, as the study did: what distillation is compared with.

Give `--config.teacher.weights` to measure, beside the accuracy, how far the student agrees with a
teacher that it never saw.

    python -m kd_jax.main --config=configs/scratch.py --workdir=runs/scratch
"""

from kd_jax import recipes


def get_config():
    return recipes.apply("scratch")
