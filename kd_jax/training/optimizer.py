"""Optimiser and learning-rate schedule, as one optax chain."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax import contrib

from kd_jax.distillation.warmup import MOST_WARMUP


class _Position(NamedTuple):
    """Where in a run a step is, for the shape of a schedule.

    Attributes:
      step: float32, counted from 0.
      progress: share of the run after the warm-up, in [0, 1].
      total_steps, steps_per_epoch: of the run.
    """

    step: jax.Array
    progress: jax.Array
    total_steps: int
    steps_per_epoch: float


def _half_cosine(progress: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _cosine_by_epoch(position: _Position, options: ConfigDict) -> jax.Array:
    """Cosine that changes once an epoch and would reach 0 an epoch after the last.

    As the study's `CosineAnnealingLR(T_0 = epochs + 1)`.
    """
    epochs = position.total_steps / position.steps_per_epoch
    return _half_cosine(
        jnp.floor((position.step + 0.5) / position.steps_per_epoch) / (epochs + 1.0)
    )


def _drops(position: _Position, options: ConfigDict) -> jax.Array:
    num_drops = sum((position.progress >= share).astype(jnp.float32) for share in options.step_at)
    return jnp.asarray(options.step_factor, jnp.float32) ** num_drops


# Learning rate after the warm-up, relative to its peak, by the choices of `config.schedule.name`.
SCHEDULES: dict[str, Callable[[_Position, ConfigDict], jax.Array]] = {
    "cosine": lambda position, options: _half_cosine(position.progress),
    "cosine_by_epoch": _cosine_by_epoch,
    "linear": lambda position, options: 1.0 - position.progress,
    "constant": lambda position, options: jnp.ones_like(position.progress),
    "step": _drops,
    # Warm-up, stable, decay.
    "wsd": lambda position, options: jnp.minimum(
        1.0, (1.0 - position.progress) / max(options.cooldown, 1e-9)
    ),
}


def _sgd(options: ConfigDict) -> optax.GradientTransformation:
    return optax.trace(options.momentum, nesterov=options.nesterov)


def _lamb(options: ConfigDict) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(eps=1e-6), optax.scale_by_trust_ratio())


def _muon(options: ConfigDict) -> optax.GradientTransformation:
    """Muon on kernels that are no depthwise ones, as matrices from inputs to outputs; else Adam.

    contrib's returns a step, and the chain of `build` needs a direction: hence the sign.
    """
    rows = contrib.muon(1.0, muon_weight_dimension_numbers=_as_matrices, consistent_rms=0.2)
    return optax.chain(rows, optax.scale(-1.0))


# Optimisers without clipping, learning rate and decay, by the choices of `config.optimizer.name`;
# they are given `config.optimizer`.
OPTIMIZERS: dict[str, Callable[[ConfigDict], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adam": lambda options: optax.scale_by_adam(),
    "nadam": lambda options: optax.scale_by_adam(nesterov=True),
    "radam": lambda options: optax.scale_by_radam(),
    "adabelief": lambda options: optax.scale_by_belief(),
    "adan": lambda options: optax.scale_by_adan(),
    "ademamix": lambda options: contrib.scale_by_ademamix(),
    "lion": lambda options: optax.scale_by_lion(),
    "lamb": _lamb,
    "muon": _muon,
}
# Those that look at a parameter as a whole. The others treat every number by itself, and may be run
# over one long vector.
_PER_PARAMETER = ("lamb", "muon")


def relative_schedule(
    total_steps: int, warmup_steps: int, options: ConfigDict, steps_per_epoch: float = 1.0
) -> Callable[[Any], jax.Array]:
    """Return step -> [0, 1]: linear warm-up from 0, then the schedule that `options` names.

    Args:
      total_steps: of the run.
      warmup_steps: at most `MOST_WARMUP` of `total_steps` is used.
      options: `config.schedule`.
      steps_per_epoch: read by `cosine_by_epoch`.
    """
    warmup_steps = min(warmup_steps, int(MOST_WARMUP * total_steps))
    shape = SCHEDULES[options.name]

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = (step + 1.0) / max(warmup_steps, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        position = _Position(step, jnp.clip(progress, 0.0, 1.0), total_steps, steps_per_epoch)
        value = shape(position, options)
        return jnp.where(step < warmup_steps, warmup, value)

    return schedule


def kernels(params: Any) -> Any:
    """Return the tree of booleans that is true on kernels: not on biases, not on norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def frozen(params: Any, pattern: str) -> Any:
    """Return the tree of booleans that is true where a parameter's path is found by `pattern`.

    A path is joined by `/`, for example `features.0.0/kernel`. An empty pattern finds nothing.
    """

    def is_frozen(path: tuple[Any, ...], _: Any) -> bool:
        return bool(pattern) and bool(re.search(pattern, "/".join(part.key for part in path)))

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def build(
    config: ConfigDict, total_steps: int, warmup_steps: int, steps_per_epoch: float = 1.0
) -> optax.GradientTransformation:
    """Return the optimiser: clip, (L2), direction, learning rate, (decoupled decay), schedule.

    What is clipped is the gradient of the loss alone, whichever the decay: as `clip_grad_norm_`
    does before a step of PyTorch's optimisers, which add their `weight_decay` then; and as
    big_vision does, whose decay comes after the direction.

    Decoupled decay is multiplied by the schedule but not by the learning rate, as in big_vision:
    so the learning rate can be searched with the decay held fixed. Frozen parameters get no update
    at all.

    Args:
      config: a checked experiment.
      total_steps, warmup_steps, steps_per_epoch: of the schedule.
    """
    options = config.optimizer
    mask = kernels if options.decay_on == "kernels" else None
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    preparation = optax.identity()
    if options.decay == "l2":  # its mask is of leaves, so the clipping has to leave the long vector
        preparation = _clipped(_flat(options, clip[0]), decay) if clip else decay
        clip = [optax.identity() for _ in clip]  # old checkpoints have a place for its state
    direction = optax.chain(
        *clip, OPTIMIZERS[options.name](options), optax.scale(config.learning_rate)
    )
    schedule = relative_schedule(total_steps, warmup_steps, config.schedule, steps_per_epoch)
    optimizer = optax.chain(
        preparation,
        _flat(options, direction),
        decay if options.decay == "decoupled" else optax.identity(),
        optax.scale_by_schedule(schedule),
        optax.scale(-1.0),
    )
    pattern = config.student.freeze
    if not pattern:
        return optimizer
    return optax.chain(
        optax.masked(
            optimizer,
            lambda tree: jax.tree.map(lambda is_frozen: not is_frozen, frozen(tree, pattern)),
        ),
        optax.masked(optax.set_to_zero(), lambda tree: frozen(tree, pattern)),
    )


def _flat(
    options: ConfigDict, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return it over one long vector instead of a hundred leaves, where that gives the same.

    It is then one loop to compile and run.
    """
    return transformation if options.name in _PER_PARAMETER else optax.flatten(transformation)


def _clipped(
    clip: optax.GradientTransformation, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return `clip` followed by `decay`, with the state of `decay`: clipping has none."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, _ = clip.update(updates, optax.EmptyState(), params)
        return decay.update(updates, state, params)

    return optax.GradientTransformation(decay.init, update)


def _as_matrices(params: Any) -> Any:
    def dimensions(path: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel" or leaf.ndim not in (2, 4) or leaf.shape[-2] == 1:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)
