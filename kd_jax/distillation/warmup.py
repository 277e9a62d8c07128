"""The warm-up of the distillation loss, and how much of a run any warm-up may take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kd_jax.data import sampler

# Largest share of a run that a warm-up takes, so that a shortened run still trains.
MOST_WARMUP = 0.1


def distillation_factor(
    config: ConfigDict, step: jax.Array, num_examples: int | None
) -> jax.Array | float:
    """Return the factor of the distillation loss at a step, in (0, 1].

    It rises linearly over `distill.warmup_epochs`, or over `MOST_WARMUP` of the run if that is
    shorter. Without a warm-up it is the constant 1, which adds nothing to the program.

    Args:
      config: of the run.
      step: int32 scalar, counted from 0.
      num_examples: of the training set; read only with a warm-up.

    Source: megvii-research/mdistiller, where it rises once an epoch.
    """
    epochs = config.distill.warmup_epochs
    if not epochs:
        return 1.0
    assert num_examples is not None
    batch_size = config.batch_size
    total_steps = config.total_steps or sampler.steps_in(
        config.total_epochs, batch_size, num_examples
    )
    steps = min(round(epochs * num_examples / batch_size), int(MOST_WARMUP * total_steps))
    return jnp.minimum((jnp.asarray(step, jnp.float32) + 1.0) / max(steps, 1), 1.0)
