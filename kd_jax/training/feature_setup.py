"""The features of a run: which modules are compared, and how their projectors are trained."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from kd_jax import models
from kd_jax.distillation import features as features_lib
from kd_jax.models import capture
from kd_jax.runtime.errors import UserError
from kd_jax.teachers.teacher import Teachers
from kd_jax.training import optimizer as optimizer_lib


def build(
    config: ConfigDict,
    teachers: Teachers | None,
    student: models.Network,
    image_shape: tuple[int, int, int],
    lengths: tuple[int, int, float],
) -> features_lib.Features:
    """Return the features that a config names.

    Args:
      config: of the run, with features.
      teachers: None where the config names none.
      student: the network that is trained.
      image_shape: `(H, W, C)` of the data.
      lengths: of the schedule, the arguments of `optimizer.build`.

    Raises:
      UserError: the teacher is out of reach, or see `features.build`.
    """
    if teachers is None or not teachers.is_live:
        arch = teachers.arch if teachers else ""
        raise UserError(
            f"config.distill.features is {config.distill.features!r}, and the teacher {arch} does "
            "not run in JAX, so its modules are out of reach: expected a network of the zoo or a "
            "Linen module as teacher, or no features"
        )
    (member,) = teachers.members
    assert member.network is not None
    return of_network(config, member.network, member.variables, student, image_shape, lengths)


def of_network(
    config: ConfigDict,
    teacher: capture.AnyNetwork,
    variables: Any,
    student: models.Network,
    image_shape: tuple[int, int, int],
    lengths: tuple[int, int, float],
) -> features_lib.Features:
    """Return the features that a config names of a teacher that runs in JAX.

    Arguments and errors as `build`; of the teacher's variables shapes are enough.
    """
    # Nothing of a projector is frozen, whatever it is called.
    free = config.copy_and_resolve_references()
    with free.unlocked():
        free.student.freeze = ""
    optimizer = optimizer_lib.build(free, *lengths)
    return features_lib.build(config.distill, teacher, variables, student, image_shape, optimizer)
