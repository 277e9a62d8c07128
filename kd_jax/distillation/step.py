"""One training step: views, teacher, student gradients, mean over devices, update.

Function matching (Beyer et al. 2021, section 3): augmented and mixed pixels are made once
(`views`), the teacher answers on them, and the student is trained to give the same answer on the
very same pixels: the KL divergence at a temperature (`objective`), without labels unless
`distill.label_weight` asks for them.

Everything random is a function of (seed, step, position in the global batch), and what changes the
state is a mean over all devices. So any number of devices gives the same training, to float
tolerance, and a resumed run gives the same bits. (With `batch_norm.sync=False` each device
normalises its own part, and then the number of devices matters.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from kd_jax.data.sampler import Batch, Streamed
from kd_jax.distillation import views
from kd_jax.distillation.ensemble import Ensemble
from kd_jax.distillation.inputs import Answered, StepInputs, make_inputs, teacher_forward
from kd_jax.distillation.state import Constants, Metrics, States, TrainState
from kd_jax.distillation.student import StudentGradients, StudentSpec, student_gradients
from kd_jax.distillation.update import apply_gradients
from kd_jax.models import Network, capture, quantize
from kd_jax.runtime.devices import AXIS

AnyBatch = Batch | Streamed | Answered


def make_cohort_step(
    students: Sequence[StudentSpec], teacher: Ensemble | None
) -> Callable[..., tuple[States, Metrics]]:
    """Return the per-device step of students that train together, to run under the axis `AXIS`.

    They share data, views and the teacher's logits, which are computed once. Each has its own
    loss, optimiser and network, so each learns as it would alone. The fields of the config that
    may differ are `config.COHORT_MUTABLE`.

    The step takes `(states, constants, batch)`: the state of each student; `Constants`; and this
    device's part of the batch, `Batch`, `Streamed`, or `Answered` where the teacher's logits were
    computed before the step. It returns the new states, and for each
    student scalar float32 metrics: `loss`, a mean over examples whatever `distill.reduction` is;
    `grad_norm` before clipping; and `agreement`, the fraction of views on which student and
    teacher choose the same class. Each is the mean over the global batch, and over the steps since
    the last multiple of `log_every_steps`: with one lambda per batch, the loss of a single step
    says little. The sums are part of the state, so a resumed run logs the same.
    """
    config = students[0].config
    if all(spec.config.distill.label_weight == 1 for spec in students):
        teacher = None  # all learn from labels alone: there is nothing to ask it
    wanted = {path for spec in students if spec.features for path in spec.features.teacher_paths}

    def gradients_of(
        states: States, constants: Constants, batch: AnyBatch
    ) -> list[StudentGradients]:
        seed, step = states[0].seed, states[0].step  # the same of all students
        batch, answers = _split_answers(batch)
        view = views.make(constants.images, batch, seed, step, config)
        indices = batch.batch if isinstance(batch, Streamed) else batch
        logits = answers
        outputs: capture.Outputs = {}
        if teacher is not None and answers is None:
            logits, outputs = teacher_forward(teacher, constants, indices, view, sorted(wanted))
        inputs = make_inputs(view, logits, constants, indices, outputs)
        num_examples = None if constants.labels is None else len(constants.labels)
        return cohort_gradients(students, teacher, states, inputs, num_examples)

    def step(states: States, constants: Constants, batch: AnyBatch) -> tuple[States, Metrics]:
        gradients = accumulate(
            lambda part: gradients_of(states, constants, part), batch, config.accumulate
        )
        gradients = mean_over_devices(gradients, statistics_are_equal=config.batch_norm.sync)
        updates = [
            apply_gradients(spec, state, grads)
            for spec, state, grads in zip(students, states, gradients, strict=True)
        ]
        return tuple(state for state, _ in updates), tuple(metrics for _, metrics in updates)

    return step


def _split_answers(batch: AnyBatch) -> tuple[Batch | Streamed, jax.Array | None]:
    """Return a batch, and the teachers' logits `[teachers, n, classes]` that it brings along."""
    if isinstance(batch, Answered):
        return batch.batch, jnp.moveaxis(jnp.asarray(batch.teacher_logits), 1, 0)
    return batch, None


def make_train_step(
    config: ConfigDict,
    student: Network,
    teacher: Ensemble | None,
    optimizer: optax.GradientTransformation,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return `make_cohort_step` of one student, without the tuples."""
    cohort_step = make_cohort_step((StudentSpec(config, student, optimizer),), teacher)

    def step(
        state: TrainState, constants: Constants, batch: AnyBatch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (state,), (metrics,) = cohort_step((state,), constants, batch)
        return state, metrics

    return step


def cohort_gradients(
    students: Sequence[StudentSpec],
    teacher: Ensemble | None,
    states: States,
    inputs: StepInputs,
    num_examples: int | None,
) -> list[StudentGradients]:
    """Return `student_gradients` of each student, computed one after another.

    The barrier makes each student wait for the one before it. Without it the compiler may compute
    them side by side, with the activations of all of them in memory at once.
    """
    gradients: list[StudentGradients] = []
    for spec, state in zip(students, states, strict=True):
        if gradients:
            inputs, gradients = jax.lax.optimization_barrier((inputs, gradients))
        gradients.append(student_gradients(spec, teacher, state, inputs, num_examples))
    return gradients


def accumulate(
    gradients_of: Callable[[AnyBatch], list[StudentGradients]],
    batch: AnyBatch,
    num_parts: int,
) -> list[StudentGradients]:
    """Return the mean of `gradients_of` over equal parts of a batch, computed one after another.

    Of the ranges of a quantised student it is the range of all parts.

    Only the activations of one part are in memory at a time.

    Args:
      gradients_of: a function of one part.
      batch: `[n, ...]` each, this device's examples of the parts in the order of the parts, as
        `devices.shard` gives them.
      num_parts: `config.accumulate`; 1 does not split.
    """
    if num_parts == 1:
        return gradients_of(batch)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
    gradients = jax.lax.map(gradients_of, parts)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: quantize.joined(x) if _is_range(path) else jnp.mean(x, axis=0), gradients
    )


def mean_over_devices(
    gradients: list[StudentGradients], *, statistics_are_equal: bool
) -> list[StudentGradients]:
    """Return the mean over the axis `AXIS`, in a single collective; ranges need one more.

    Args:
      gradients: of this device.
      statistics_are_equal: whether all devices have the same batch statistics already
        (`config.batch_norm.sync`); then those are not reduced.
    """
    if not statistics_are_equal:
        paths = jax.tree_util.tree_leaves_with_path(gradients)
        ranges = quantize.joined_over({p: x for p, x in paths if _is_range(p)}, AXIS)
        return jax.tree_util.tree_map_with_path(
            lambda path, mean: ranges.get(path, mean), _pmean(gradients)
        )
    means = _pmean([(each.params, each.metrics, each.projectors) for each in gradients])
    return [
        StudentGradients(params, metrics, each.batch_stats, projectors)
        for (params, metrics, projectors), each in zip(means, gradients, strict=True)
    ]


def _is_range(path: tuple[Any, ...]) -> bool:
    """Tell whether a leaf of gradients is a range of int8's numbers, which has no mean."""
    is_statistic = jax.tree_util.GetAttrKey("batch_stats") in path
    return is_statistic and quantize.is_range(("batch_stats", str(getattr(path[-1], "key", ""))))


def _pmean(tree: Any) -> Any:
    """Return the mean of a float32 tree over `AXIS`, as one vector."""
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, AXIS))
