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
from kd_jax.distillation.inputs import StepInputs
from kd_jax.distillation.objective import UserLoss, student_loss
from kd_jax.distillation.state import TrainState
from kd_jax.distillation.warmup import distillation_factor
from kd_jax.models import Network


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """A student, and how it is trained.

    Attributes:
      config: of its run.
      network: the network that is trained.
      optimizer: one optax chain.
      loss: for `distill.loss` python, see `objective.user_loss`; None for all others.
    """

    config: ConfigDict
    network: Network
    optimizer: optax.GradientTransformation
    loss: UserLoss | None = None


class StudentGradients(NamedTuple):
    """Result of one forward and backward pass of a student.

    Attributes:
      params: gradients of the loss, a tree like the parameters.
      metrics: float32 scalars: `loss`, a mean over examples whatever `distill.reduction` is, and
        with a teacher `agreement`, the fraction of examples on which both choose the same class.
      batch_stats: `models.norm.Statistics` of the batch.
    """

    params: Any
    metrics: dict[str, jax.Array]
    batch_stats: Any


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

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats = network.train_logits(
            variables, inputs.pixels, dropout_keys, average_step(config, state)
        )
        loss = jnp.mean(
            student_loss(
                config,
                logits,
                targets,
                target_weights,
                label_probs,
                inputs.labels,
                spec.loss,
                warmup=warmup,
            )
        )
        return scale * loss, (loss, logits, batch_stats)

    grads, (loss, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    metrics = {"loss": loss}
    if consensus is not None:
        same = jnp.argmax(logits, axis=-1) == jnp.argmax(consensus, axis=-1)
        metrics["agreement"] = jnp.mean(same.astype(jnp.float32))
    return StudentGradients(grads, metrics, batch_stats)


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
