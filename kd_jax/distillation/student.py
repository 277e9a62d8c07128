"""One student of a cohort: what describes it, and the gradients of its loss."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from kd_jax.distillation import augment, losses
from kd_jax.distillation.ensemble import Ensemble
from kd_jax.distillation.features import Features
from kd_jax.distillation.inputs import StepInputs
from kd_jax.distillation.objective import UserLoss, student_loss
from kd_jax.distillation.state import FeatureTrainState, TrainState
from kd_jax.distillation.warmup import distillation_factor
from kd_jax.models import Network, capture


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """A student, and how it is trained.

    Attributes:
      config: of its run.
      network: the network that is trained.
      optimizer: one optax chain.
      loss: for `distill.loss` python, see `objective.user_loss`; None for all others.
      features: that it matches besides; None: none.
    """

    config: ConfigDict
    network: Network
    optimizer: optax.GradientTransformation
    loss: UserLoss | None = None
    features: Features | None = None


class StudentGradients(NamedTuple):
    """Result of one forward and backward pass of a student.

    Attributes:
      params: gradients of the loss, a tree like the parameters.
      metrics: float32 scalars: `loss`, a mean over examples whatever `distill.reduction` is, and
        with a teacher `agreement`, the fraction of examples on which both choose the same class;
        with features `feature_loss`, which is a part of `loss` by its weight.
      batch_stats: `models.norm.Statistics` of the batch.
      projectors: gradients of the loss to `FeatureTrainState.projectors`; empty without.
    """

    params: Any
    metrics: dict[str, jax.Array]
    batch_stats: Any
    projectors: Any = ()


def student_gradients(
    spec: StudentSpec,
    teacher: Ensemble | None,
    state: TrainState,
    inputs: StepInputs,
    num_examples: int | None = None,
) -> StudentGradients:
    """Return gradients, metrics and batch statistics of one student on the inputs of one device.

    Args:
      spec: the student.
      teacher: combines `inputs.teacher_logits`; not read when `distill.label_weight` is 1.
      state: `params`, `batch_stats`, `seed` and `step` are read.
      inputs: of this device.
      num_examples: of the training set; only `distill.warmup_epochs` reads it.
    """
    config, network, distill = spec.config, spec.network, spec.config.distill
    # A sum over the global batch is its mean, times its size: for any number of devices.
    scale = config.batch_size if distill.reduction == "sum" else 1
    targets: tuple[jax.Array, ...] = ()
    target_weights: tuple[float, ...] = ()
    consensus = None
    if distill.label_weight < 1:
        assert teacher is not None
        logits = inputs.teacher_logits
        assert logits is not None
        targets, target_weights = teacher.targets(logits, distill.loss, distill.temperature)
        consensus = teacher.mean(logits)
    label_probs = _label_probs(inputs, network.num_classes, distill.label_smoothing)
    warmup = distillation_factor(config, state.step, num_examples)
    dropout_keys = None
    if network.has_dropout:
        dropout_key = augment.stream_key(state.seed, state.step, augment.STREAM_DROPOUT)
        dropout_keys = augment.position_keys(dropout_key, inputs.position)

    def loss_of(params: Any, projectors: Any) -> tuple[jax.Array, tuple[Any, jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}

        def forward() -> tuple[jax.Array, Any]:
            return network.train_logits(
                variables, inputs.pixels, dropout_keys, average_step(config, state)
            )

        outputs: capture.Outputs = {}
        if spec.features is None:
            logits, batch_stats = forward()
        else:
            (logits, batch_stats), outputs = capture.outputs(forward)
        losses = student_loss(
            config,
            logits,
            targets,
            target_weights,
            label_probs,
            inputs.labels,
            spec.loss,
            warmup=warmup,
        )
        metrics = {}
        if spec.features is not None:
            apart = spec.features.loss_of(projectors, inputs.teacher_outputs, outputs)
            losses += spec.features.weight * apart
            metrics["feature_loss"] = jnp.mean(apart)
        loss = jnp.mean(losses)
        return scale * loss, ({"loss": loss, **metrics}, logits, batch_stats)

    projectors = state.projectors if isinstance(state, FeatureTrainState) else {}
    (grads, projector_grads), (metrics, logits, batch_stats) = jax.grad(
        loss_of, argnums=(0, 1), has_aux=True
    )(state.params, projectors)
    if consensus is not None:
        same = jnp.argmax(logits, axis=-1) == jnp.argmax(consensus, axis=-1)
        metrics["agreement"] = jnp.mean(same.astype(jnp.float32))
    return StudentGradients(grads, metrics, batch_stats, projector_grads)


def average_step(config: ConfigDict, state: TrainState) -> jax.Array | None:
    """Return the step by which running batch statistics are averaged, see `norm.running_average`.

    Initial statistics are forgotten faster in the first steps. Not those of a student that starts
    from weights: they were learned. None says so.
    """
    return None if config.student.weights else state.step


def _label_probs(inputs: StepInputs, num_classes: int, smoothing: float) -> jax.Array | None:
    """Return the mixed and smoothed labels, float32 `[n, classes]`; None without labels."""
    if inputs.labels is None:
        return None
    labels = jax.nn.one_hot(inputs.labels, num_classes)
    partner_labels = jax.nn.one_hot(inputs.partner_labels, num_classes)
    label_probs = augment.mix(labels, partner_labels, inputs.lam)
    return losses.smooth_labels(label_probs, smoothing) if smoothing else label_probs
