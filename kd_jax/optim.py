"""Optimiser and learning-rate schedule, as one optax chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

# Warm-up never takes more than this part of a run, so a shortened run still trains.
MOST_WARMUP = 0.1


def relative_schedule(total_steps: int, warmup_steps: int) -> Callable[[Any], jax.Array]:
    """Return step -> [0, 1]: linear warm-up from 0, then a cosine to 0 at `total_steps`.

    Args:
      total_steps: of the run.
      warmup_steps: at most `MOST_WARMUP` of them count.
    """
    warmup_steps = min(warmup_steps, int(MOST_WARMUP * total_steps))

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = (step + 1.0) / max(warmup_steps, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def kernels(params: Any) -> Any:
    """Return the tree of booleans that is true on kernels: not on biases, not on norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def build(config: ConfigDict, total_steps: int, warmup_steps: int) -> optax.GradientTransformation:
    """Return the optimiser: clip, (L2), direction, learning rate, (decoupled decay), schedule.

    Decoupled decay is multiplied by the schedule but not by the learning rate, as in big_vision:
    so the learning rate can be searched with the decay held fixed.

    Args:
      config: a checked experiment.
      total_steps, warmup_steps: of the schedule.
    """
    chosen = config.optimizer
    mask = kernels if chosen.decay_on == "kernels" else None
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    direction = [optax.clip_by_global_norm(chosen.clip_norm)] if chosen.clip_norm else []
    if chosen.name == "adam":
        direction.append(optax.scale_by_adam())
    else:
        direction.append(optax.trace(chosen.momentum, nesterov=chosen.nesterov))
    direction.append(optax.scale(config.learning_rate))
    return optax.chain(
        decay if chosen.decay == "l2" else optax.identity(),
        # One long vector instead of a hundred leaves: one loop to compile and to run.
        optax.flatten(optax.chain(*direction)),
        decay if chosen.decay == "decoupled" else optax.identity(),
        optax.scale_by_schedule(relative_schedule(total_steps, warmup_steps)),
        optax.scale(-1.0),
    )
