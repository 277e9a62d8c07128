"""What a step reads and writes: the state of a student, and constants that no step changes."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from kd_jax.distillation.features import Features, Projectors
from kd_jax.models import Variables


@flax.struct.dataclass
class TrainState:
    """State that a run carries from step to step; the content of a checkpoint.

    Attributes:
      step: int32, number of updates made.
      seed: int32, of every random number in the run.
      params, batch_stats: the student's variables, as they are trained.
      average: the running average of both, under the same names; empty when none is kept.
      opt_state: of the optax chain.
      metric_sums: float32 scalars, sums since the last step that was logged, and the number of
        `steps` in them: so the mean is right even where `log_every_steps` changed at a resume.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    average: Any
    opt_state: Any
    metric_sums: dict[str, jax.Array]

    @property
    def variables(self) -> Variables:
        """Variables that are evaluated and kept: the average if there is one, else the trained."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class FeatureTrainState(TrainState):
    """State of a run that matches features through projectors.

    Attributes:
      projectors: of the student's features, see `features.Features`; never evaluated or kept.
      projector_opt_state: of their optax chain.
    """

    projectors: Projectors
    projector_opt_state: Any


# One entry for each student of a cohort: its state, and its metrics (float32 scalars by name).
States = tuple[TrainState, ...]
Metrics = tuple[dict[str, jax.Array], ...]


class Constants(NamedTuple):
    """Inputs of every step that no step changes, replicated on every device.

    Attributes:
      images: uint8 `[N, H, W, C]`, the training set; None when it is streamed.
      labels: int32 `[N]`, or None when the recipe is label-free.
      teacher_variables: of each teacher; empty without one.
      teacher_logits: float32 `[teachers, N, classes]` of the clean images, for the view `fixed`.
    """

    images: jax.Array | None
    labels: jax.Array | None = None
    teacher_variables: tuple[Variables, ...] = ()
    teacher_logits: jax.Array | None = None


def init_state(
    config: ConfigDict,
    variables: Variables,
    optimizer: optax.GradientTransformation,
    features: Features | None = None,
) -> TrainState:
    """Return the state before the first step, from the student's first variables."""
    metrics = ["loss", "grad_norm", *(["agreement"] if config.distill.label_weight < 1 else [])]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(config.seed, jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        average=jax.tree.map(jnp.copy, variables) if config.student.ema_decay else {},
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        metric_sums={name: jnp.zeros(()) for name in (*metrics, "steps")},
    )
    if features is None:
        return state
    seed = config.seed if config.student.init_seed is None else config.student.init_seed
    projectors = features.first_projectors(seed)
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    parts["metric_sums"]["feature_loss"] = jnp.zeros(())
    if not projectors:
        return TrainState(**parts)
    return FeatureTrainState(
        **parts,
        projectors=projectors,
        projector_opt_state=jax.jit(features.optimizer.init)(projectors),
    )
