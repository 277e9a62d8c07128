"""The inputs of the students in one step: pixels, the teacher's logits of them, and labels.

The teacher's logits are computed in the step, looked up (`distill.view` fixed), or brought along by
the batch (`Answered`): by a teacher that does not run in JAX, or from a recording.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.data.sampler import Array, Batch, Streamed
from kd_jax.distillation.ensemble import Ensemble
from kd_jax.distillation.state import Constants
from kd_jax.distillation.views import Views
from kd_jax.kernels import ordering


class Answered(NamedTuple):
    """A batch with the teachers' logits of its views, which were computed before the step.

    Attributes:
      batch: as it is without them.
      teacher_logits: float32 `[n, teachers, classes]`.
    """

    batch: Batch | Streamed
    teacher_logits: Array


class StepInputs(NamedTuple):
    """Inputs that all students of a cohort share in one step: the part of one device.

    Attributes:
      pixels: float32 `[n, H, W, C]` in [0, 1].
      lam: float32 `[n]`, mixup's weight of the example itself in its pixels.
      position: int32 `[n]`, in the global batch.
      teacher_logits: float32 `[teachers, n, classes]`; None if no student learns from a teacher.
      labels, partner_labels: int32 `[n]`, of the examples and of their mixup partners; None if no
        student learns from labels.
    """

    pixels: jax.Array
    lam: jax.Array
    position: jax.Array
    teacher_logits: jax.Array | None
    labels: jax.Array | None
    partner_labels: jax.Array | None


def teacher_forward(
    teacher: Ensemble, constants: Constants, batch: Batch, view: Views
) -> jax.Array:
    """Return the logits of every teacher, float32 `[teachers, n, classes]`.

    They are computed from the teacher's view. Where it has none (`distill.view` fixed) they are
    looked up in `constants.teacher_logits`.
    """
    if view.teacher is None:
        assert constants.teacher_logits is not None
        return constants.teacher_logits[:, batch.example]
    return teacher.logits(constants.teacher_variables, view.teacher)


def make_inputs(
    view: Views, teacher_logits: jax.Array | None, constants: Constants, batch: Batch
) -> StepInputs:
    """Collect the inputs of the students, and look up the labels of the batch.

    On CPU the pixels are computed after the teacher's logits, see `ordering.after`. No gradient
    flows into the logits.
    """
    pixels = view.student
    if teacher_logits is not None:
        if view.teacher is not None:
            pixels = ordering.after(teacher_logits, pixels)
        teacher_logits = jax.lax.stop_gradient(teacher_logits)
    labels, partner_labels = None, None
    if constants.labels is not None:
        labels = constants.labels[batch.example]
        partner_labels = constants.labels[batch.partner]
    position = jnp.asarray(batch.position)
    return StepInputs(pixels, view.lam, position, teacher_logits, labels, partner_labels)
