"""Optimiser and learning-rate schedule, as one optax chain."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax import contrib

# Warm-up never takes more than this part of a run, so a shortened run still trains.
MOST_WARMUP = 0.1

SCHEDULES = ("cosine", "cosine_by_epoch", "linear", "constant", "step", "wsd")

# Directions that treat every number by itself: they may be run over one long vector.
_ELEMENTWISE: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": optax.scale_by_adam,
    "nadam": lambda: optax.scale_by_adam(nesterov=True),
    "radam": optax.scale_by_radam,
    "adabelief": optax.scale_by_belief,
    "adan": optax.scale_by_adan,
    "ademamix": contrib.scale_by_ademamix,
    "lion": optax.scale_by_lion,
}
# Directions that look at a parameter as a whole.
_WHOLE = ("lamb", "muon")
OPTIMIZERS = ("sgd", *_ELEMENTWISE, *_WHOLE)


def relative_schedule(
    total_steps: int, warmup_steps: int, options: ConfigDict, steps_per_epoch: float = 1.0
) -> Callable[[Any], jax.Array]:
    """Return step -> [0, 1]: linear warm-up from 0, then the schedule that `options` names.

    Args:
      total_steps: of the run.
      warmup_steps: at most `MOST_WARMUP` of them count.
      options: `config.schedule`.
      steps_per_epoch: read by `cosine_by_epoch`, which changes once an epoch and, as the study's
        `CosineAnnealingLR(T_0 = epochs + 1)` does, would reach 0 an epoch after the last.
    """
    warmup_steps = min(warmup_steps, int(MOST_WARMUP * total_steps))

    def after_warmup(progress: jax.Array, step: jax.Array) -> jax.Array:
        if options.name == "constant":
            return jnp.ones_like(progress)
        if options.name == "linear":
            return 1.0 - progress
        if options.name == "wsd":  # warm-up, stable, decay
            return jnp.minimum(1.0, (1.0 - progress) / max(options.cooldown, 1e-9))
        if options.name == "step":
            passed = sum((progress >= at).astype(jnp.float32) for at in options.step_at)
            return jnp.asarray(options.step_factor, jnp.float32) ** passed
        if options.name == "cosine_by_epoch":
            epochs = total_steps / steps_per_epoch
            progress = jnp.floor((step + 0.5) / steps_per_epoch) / (epochs + 1.0)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = (step + 1.0) / max(warmup_steps, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        later = after_warmup(jnp.clip(progress, 0.0, 1.0), step)
        return jnp.where(step < warmup_steps, warmup, later)

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
    chosen = config.optimizer
    mask = kernels if chosen.decay_on == "kernels" else None
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    clip = [optax.clip_by_global_norm(chosen.clip_norm)] if chosen.clip_norm else []
    before = optax.identity()
    if chosen.decay == "l2":  # its mask is of leaves, so the clipping has to leave the long vector
        before = _clipped(_flat(chosen, clip[0]), decay) if clip else decay
        clip = [optax.identity() for _ in clip]  # old checkpoints have a place for its state
    direction = optax.chain(*clip, _direction(chosen), optax.scale(config.learning_rate))
    schedule = relative_schedule(total_steps, warmup_steps, config.schedule, steps_per_epoch)
    optimizer = optax.chain(
        before,
        _flat(chosen, direction),
        decay if chosen.decay == "decoupled" else optax.identity(),
        optax.scale_by_schedule(schedule),
        optax.scale(-1.0),
    )
    pattern = config.student.freeze
    if not pattern:
        return optimizer
    return optax.chain(
        optax.masked(optimizer, lambda tree: jax.tree.map(lambda f: not f, frozen(tree, pattern))),
        optax.masked(optax.set_to_zero(), lambda tree: frozen(tree, pattern)),
    )


def _flat(
    chosen: ConfigDict, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return it over one long vector instead of a hundred leaves: one loop to compile and run."""
    return transformation if chosen.name in _WHOLE else optax.flatten(transformation)


def _clipped(
    clip: optax.GradientTransformation, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return `clip` followed by `decay`, with the state of `decay`: clipping has none."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, _ = clip.update(updates, optax.EmptyState(), params)
        return decay.update(updates, state, params)

    return optax.GradientTransformation(decay.init, update)


def _direction(chosen: ConfigDict) -> optax.GradientTransformation:
    """Return the optimiser without clipping, learning rate and decay."""
    if chosen.name == "sgd":
        return optax.trace(chosen.momentum, nesterov=chosen.nesterov)
    if chosen.name == "lamb":
        return optax.chain(optax.scale_by_adam(eps=1e-6), optax.scale_by_trust_ratio())
    if chosen.name == "muon":
        # Kernels but depthwise ones are matrices from all their inputs to their outputs; the rest
        # is left to Adam. The signs: contrib's gives a step, and this chain wants a direction.
        rows = contrib.muon(1.0, muon_weight_dimension_numbers=_as_matrices, consistent_rms=0.2)
        return optax.chain(rows, optax.scale(-1.0))
    return _ELEMENTWISE[chosen.name]()


def _as_matrices(params: Any) -> Any:
    def dimensions(path: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel" or leaf.ndim not in (2, 4) or leaf.shape[-2] == 1:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)
