"""The loss of a student by its config: to its teachers, to the labels, or to both.

The temperature is read here and in `student.student_gradients`, which asks the ensemble for its
targets at the same temperature.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kd_jax.distillation import losses
from kd_jax.runtime.devices import AXIS
from kd_jax.runtime.errors import UserError

UserLoss = Callable[..., jax.Array]


def user_loss(
    loss: UserLoss,
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    labels: jax.Array | None,
) -> jax.Array:
    """Return a user's loss of each example, float32 `[n]`.

    Args:
      loss: `loss(teacher_logits, student_logits)`, or with `labels` as a third argument if they are
        not None; a pure function of JAX arrays.
      teacher_logits, student_logits: `[n, classes]`, as the networks gave them.
      labels: int `[n]`.

    Raises:
      UserError: it does not return one number for each example.
    """
    arguments = (teacher_logits, student_logits, *(() if labels is None else (labels,)))
    values = jnp.asarray(loss(*arguments), jnp.float32)
    if values.shape != student_logits.shape[:1]:
        raise UserError(
            f"the loss {getattr(loss, '__name__', loss)} returns an array of shape {values.shape} "
            f"for {len(student_logits)} examples: expected one number for each, shape "
            f"({len(student_logits)},)"
        )
    return values


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
    loss_function: UserLoss | None = None,
    warmup: jax.Array | float = 1.0,
) -> jax.Array:
    """Return the loss of each example, float32 `[n]`.

    Args:
      config: `distill` is read.
      student_logits: `[n, classes]`.
      teacher_logits: `[n, classes]` of each target; not read when `label_weight` is 1.
      shares: weights of the targets, with sum 1.
      label_probs: `[n, classes]`; not read when `label_weight` is 0.
      labels: int `[n]`, of the examples themselves; only `dkd` and `python_with_labels` read them.
      loss_function: for `distill.loss` python.
      warmup: scalar, a further factor of the distillation loss (`warmup.distillation_factor`).
    """
    weight, total = config.distill.label_weight, config.distill.total_weight
    loss = jnp.zeros(student_logits.shape[:1])
    if weight < 1:
        for share, logits in zip(shares, teacher_logits, strict=True):
            if loss_function is None:
                to_teacher = distillation_loss(config.distill, logits, student_logits, labels)
            else:
                read = labels if config.distill.loss == "python_with_labels" else None
                to_teacher = user_loss(loss_function, logits, student_logits, read)
            loss += total * (1 - weight) * share * warmup * to_teacher
    if weight > 0:
        assert label_probs is not None
        loss += total * weight * losses.cross_entropy(student_logits, label_probs)
    return loss
