"""The loss of a student by its config: to its teachers, to the labels, or to both.

The temperature is read here and in `student.student_gradients`, which asks the ensemble for its
targets at the same temperature.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kd_jax.distill import losses
from kd_jax.runtime.devices import AXIS


def distillation_loss(
    options: ConfigDict,
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    labels: jax.Array | None,
) -> jax.Array:
    """Return the loss of each example to one teacher, float32 `[n]`.

    Args:
      options: `config.distill`.
      teacher_logits, student_logits: `[n, classes]`.
      labels: int `[n]`; only `dkd` reads them.
    """
    temperature = options.temperature
    teacher, student = teacher_logits, student_logits
    if options.standardize_logits:
        teacher, student = losses.standardize(teacher), losses.standardize(student)
    if options.loss == "squared_error":
        return losses.squared_error(teacher, student)
    if options.loss == "hard_label":
        return losses.hard_label(teacher, student)
    if options.loss == "dist":
        loss = losses.dist(
            teacher,
            student,
            temperature,
            inter=options.dist_inter,
            intra=options.dist_intra,
            gather=lambda probs: jax.lax.all_gather(probs, AXIS, tiled=True),
        )
    elif options.loss == "dkd":
        assert labels is not None
        loss = losses.dkd(
            teacher,
            student,
            temperature,
            labels,
            target=options.dkd_target,
            others=options.dkd_others,
        )
    else:
        divergence = {
            "forward_kl": losses.kl_divergence,
            "reverse_kl": losses.reverse_kl,
            "jensen_shannon": losses.jensen_shannon,
        }[options.loss]
        loss = divergence(teacher, student, temperature)
    return loss if options.squared_temperature else loss / temperature**2


def student_loss(
    config: ConfigDict,
    student_logits: jax.Array,
    teacher_logits: tuple[jax.Array, ...],
    shares: tuple[float, ...],
    label_probs: jax.Array | None,
    labels: jax.Array | None,
) -> jax.Array:
    """Return the loss of each example, float32 `[n]`.

    Args:
      config: `distill` is read.
      student_logits: `[n, classes]`.
      teacher_logits: `[n, classes]` of each target; not read when `label_weight` is 1.
      shares: weights of the targets, with sum 1.
      label_probs: `[n, classes]`; not read when `label_weight` is 0.
      labels: int `[n]`, of the examples themselves; only `dkd` reads them.
    """
    weight = config.distill.label_weight
    loss = jnp.zeros(student_logits.shape[:1])
    if weight < 1:
        for share, logits in zip(shares, teacher_logits, strict=True):
            to_teacher = distillation_loss(config.distill, logits, student_logits, labels)
            loss += (1 - weight) * share * to_teacher
    if weight > 0:
        assert label_probs is not None
        loss += weight * losses.cross_entropy(student_logits, label_probs)
    return loss
