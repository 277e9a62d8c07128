"""The inputs of the students in one step: pixels, the teacher's logits of them, and labels.

The teacher's logits are computed in the step, looked up (`distill.view` fixed), or brought along by
the batch (`Answered`): by a teacher that does not run in JAX, or from a recording.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.data.sampler import Array, Batch, Streamed
from kd_jax.distillation.ensemble import Ensemble
from kd_jax.distillation.state import Constants
from kd_jax.distillation.views import Views
from kd_jax.kernels import ordering
from kd_jax.models import capture


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
      teacher_outputs: of the teacher's modules whose features a student matches, by path.
    """

    pixels: jax.Array
    lam: jax.Array
    position: jax.Array
    teacher_logits: jax.Array | None
    labels: jax.Array | None
    partner_labels: jax.Array | None
    teacher_outputs: dict[str, jax.Array]


def teacher_forward(
    teacher: Ensemble,
    constants: Constants,
    batch: Batch,
    view: Views,
    paths: Collection[str] = (),
) -> tuple[jax.Array, capture.Outputs]:
    """Return the logits of every teacher, float32 `[teachers, n, classes]`, and outputs of modules.

    They are computed from the teacher's view. Where it has none (`distill.view` fixed) the logits
    are looked up in `constants.teacher_logits`.

    Args:
      teacher: one or several; only of one there are outputs.
      constants: of the step.
      batch: the examples.
      view: of them.
      paths: of the teacher's modules whose outputs are wanted.
    """
    if view.teacher is None:
        assert constants.teacher_logits is not None
        return constants.teacher_logits[:, batch.example], {}
    if not paths:
        return teacher.logits(constants.teacher_variables, view.teacher), {}
    (network,), (variables,) = teacher.networks, constants.teacher_variables
    assert network is not None
    logits, outputs = capture.logits_and_outputs(network, variables, view.teacher, paths)
    return logits[None], outputs


def make_inputs(
    view: Views,
    teacher_logits: jax.Array | None,
    constants: Constants,
    batch: Batch,
    teacher_outputs: Mapping[str, jax.Array] = MappingProxyType({}),
) -> StepInputs:
    """Collect the inputs of the students, and look up the labels of the batch.

    On CPU the pixels are computed after the teacher's logits, see `ordering.after`. No gradient
    flows into what the teacher gives.
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
    outputs = jax.lax.stop_gradient(dict(teacher_outputs))
    return StepInputs(pixels, view.lam, position, teacher_logits, labels, partner_labels, outputs)
