"""From reduced gradients to the next state: optimiser, batch statistics, metrics.

And the running average of the weights (EMA), where the config keeps one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from kd_jax.distillation.state import FeatureTrainState, TrainState
from kd_jax.distillation.student import StudentGradients, StudentSpec, average_step
from kd_jax.models import quantize
from kd_jax.models.norm import running_average


def apply_gradients(
    spec: StudentSpec, state: TrainState, gradients: StudentGradients
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update, and the mean metrics since the last logged step.

    Args:
      spec: the student.
      state: before the update.
      gradients: means over the global batch. The metric `grad_norm` is their norm before clipping.
    """
    config = spec.config
    grad_norm = optax.global_norm(gradients.params)
    metrics = {**gradients.metrics, "grad_norm": grad_norm, "steps": jnp.ones(())}
    begins = state.step % config.log_every_steps == 0
    sums = jax.tree.map(
        lambda total, new: jnp.where(begins, new, total + new), state.metric_sums, metrics
    )
    updates, opt_state = spec.optimizer.update(gradients.params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    batch_stats = spec.network.average_statistics(
        state.batch_stats, gradients.batch_stats, average_step(config, state)
    )
    average = state.average
    if config.student.ema_decay:
        variables = {"params": params, "batch_stats": batch_stats}
        average = running_average(average, variables, state.step, config.student.ema_decay)
        if spec.network.quantized:  # ranges are averages already, and an average begins at 0
            average = quantize.with_ranges_of(average, variables)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        average=average,
        opt_state=opt_state,
        metric_sums=sums,
    )
    if isinstance(state, FeatureTrainState):
        state = _update_projectors(spec, state, gradients)
    count = sums["steps"]
    return state, {name: total / count for name, total in sums.items() if name != "steps"}


def _update_projectors(
    spec: StudentSpec, state: FeatureTrainState, gradients: StudentGradients
) -> FeatureTrainState:
    """Return the state with new projectors. Their gradient is clipped by its own norm."""
    assert spec.features is not None
    updates, opt_state = spec.features.optimizer.update(
        gradients.projectors, state.projector_opt_state, state.projectors
    )
    projectors = optax.apply_updates(state.projectors, updates)
    return dataclasses.replace(state, projectors=projectors, projector_opt_state=opt_state)
