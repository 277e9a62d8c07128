"""Ask the teacher before the step, where it cannot be asked within: on the host, or to record it.

The views of a step are a function of (seed, step, position). So a program of its own makes the
teacher's view and asks, and the step (`step.make_cohort_step`) makes the same view again for the
student and takes the logits from `inputs.Answered`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from kd_jax.data.sampler import Batch, Streamed
from kd_jax.distillation import views
from kd_jax.distillation.state import Constants

Ask = Callable[[Any, jax.Array], Any]


def make_question_step(config: ConfigDict, ask: Ask) -> Callable[..., Any]:
    """Return the per-device function `(constants, batch, seed, step)` that asks the teacher.

    Args:
      config: whose views are made; not with `distill.view` fixed, whose logits are known before.
      ask: `(constants.teacher_variables, pixels)` to a tree of arrays `[n, ...]`: logits, or the
        input of a network that does not run in JAX. `pixels` is float32 `[n, H, W, C]` in [0, 1].
    """

    def question(
        constants: Constants, batch: Batch | Streamed, seed: jax.Array, step: jax.Array
    ) -> Any:
        pixels = views.make(constants.images, batch, seed, step, config).teacher
        assert pixels is not None
        return ask(constants.teacher_variables, pixels)

    return question
