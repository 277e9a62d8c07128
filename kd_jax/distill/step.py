"""One training step: view, teacher, student, loss, update. The heart of the project.

Everything random is a function of (seed, step, position in the global batch), and everything that
leaves a step is reduced over all devices: so 1, 2 or 8 devices give the same training, and a
resumed run the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from kd_jax.data.sampler import Batch, Streamed
from kd_jax.distill import augment, losses, views
from kd_jax.distill.ensemble import Ensemble
from kd_jax.distill.objective import student_loss
from kd_jax.kernels import ordering
from kd_jax.models import Network, Variables
from kd_jax.models.norm import running_average
from kd_jax.runtime.devices import AXIS


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step; what a checkpoint holds.

    Attributes:
      step: int32, number of updates made.
      seed: int32, of every random number in the run.
      params, batch_stats: the student's variables, as they are trained.
      average: the running average of both, under the same names; empty when none is kept.
      opt_state: of the optax chain.
      metric_sums: float32 scalars, since the last step that was logged, and how many `step` those
        were: so the mean is right even where `log_every_steps` changed at a resume.
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
        """The student that is evaluated and kept: the average, where one is kept."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


class Constants(NamedTuple):
    """What every step reads and none changes, on every device.

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
    config: ConfigDict, variables: Variables, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step, from the student's first variables."""
    metrics = ("loss", "grad_norm", *(("agreement",) if config.distill.label_weight < 1 else ()))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(config.seed, jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        average=jax.tree.map(jnp.copy, variables) if config.student.ema_decay else {},
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        metric_sums={name: jnp.zeros(()) for name in (*metrics, "steps")},
    )


def _mean_over_devices(tree: Any) -> Any:
    """Return the mean of a float32 tree over `AXIS`, in a single collective."""
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, AXIS))


class Pupil(Protocol):
    """A student with what trains it; a `RunSetup` is one."""

    @property
    def config(self) -> ConfigDict:
        """The experiment's."""

    @property
    def student(self) -> Network:
        """The network that is trained."""

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """One optax chain."""


class Seen(NamedTuple):
    """What every student of a cohort is given in one step: one device's part.

    Attributes:
      pixels: float32 `[n, H, W, C]` in [0, 1].
      share: float32 `[n]`, how much of them is the example itself.
      position: int32 `[n]`, in the global batch.
      teacher_logits: float32 `[teachers, n, classes]`; None where nobody learns from a teacher.
      labels, partner_labels: int32 `[n]`, of the examples and of their partners; None where nobody
        learns from labels.
    """

    pixels: jax.Array
    share: jax.Array
    position: jax.Array
    teacher_logits: jax.Array | None
    labels: jax.Array | None
    partner_labels: jax.Array | None


def _look(
    config: ConfigDict,
    teacher: Ensemble | None,
    state: TrainState,
    constants: Constants,
    given: Batch | Streamed,
) -> Seen:
    """Make the views of a part of the batch, and ask the teacher about them."""
    view = views.make(constants.images, given, state.seed, state.step, config)
    batch = given.batch if isinstance(given, Streamed) else given
    logits = None
    if teacher is not None:
        if view.teacher is None:
            assert constants.teacher_logits is not None
            logits = constants.teacher_logits[:, batch.example]
        else:
            logits = teacher.logits(constants.teacher_variables, view.teacher)
            view = view._replace(student=ordering.after(logits, view.student))
        logits = jax.lax.stop_gradient(logits)
    labels, partner_labels = None, None
    if constants.labels is not None:
        labels = constants.labels[batch.example]
        partner_labels = constants.labels[batch.partner]
    position = jnp.asarray(batch.position)
    return Seen(view.student, view.share, position, logits, labels, partner_labels)


def _gradient(
    pupil: Pupil, teacher: Ensemble | None, state: TrainState, seen: Seen
) -> tuple[Any, dict[str, jax.Array], Any]:
    """Return gradients, metrics and batch statistics of one student on what was seen."""
    config, student = pupil.config, pupil.student
    distill = config.distill
    # A sum over the global batch is its mean, times its size: for any number of devices.
    scale = config.batch_size if distill.reduction == "sum" else 1
    targets: tuple[jax.Array, ...] = ()
    shares: tuple[float, ...] = ()
    consensus = None
    if distill.label_weight < 1:
        assert teacher is not None
        assert seen.teacher_logits is not None
        targets, shares = teacher.targets(seen.teacher_logits, distill.loss, distill.temperature)
        consensus = teacher.mean(seen.teacher_logits)
    label_probs = None
    if seen.labels is not None:
        own = jax.nn.one_hot(seen.labels, student.num_classes)
        partner = jax.nn.one_hot(seen.partner_labels, student.num_classes)
        label_probs = augment.mix(own, partner, seen.share)
        if distill.label_smoothing:
            label_probs = losses.smooth_labels(label_probs, distill.label_smoothing)
    dropout_keys = None
    if config.student.dropout:
        dropout_key = augment.stream_key(state.seed, state.step, augment.STREAM_DROPOUT)
        dropout_keys = augment.position_keys(dropout_key, seen.position)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats = student.train_logits(variables, seen.pixels, dropout_keys)
        loss = jnp.mean(student_loss(config, logits, targets, shares, label_probs, seen.labels))
        return scale * loss, (loss, logits, batch_stats)

    grads, (loss, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    metrics = {"loss": loss}
    if consensus is not None:
        same = jnp.argmax(logits, axis=-1) == jnp.argmax(consensus, axis=-1)
        metrics["agreement"] = jnp.mean(same.astype(jnp.float32))
    return grads, metrics, batch_stats


def _update(
    pupil: Pupil, state: TrainState, grads: Any, metrics: dict[str, jax.Array], batch_stats: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update, and the metrics since the last logged step."""
    config = pupil.config
    metrics = {**metrics, "grad_norm": optax.global_norm(grads), "steps": jnp.ones(())}
    begins = state.step % config.log_every_steps == 0
    sums = jax.tree.map(
        lambda total, new: jnp.where(begins, new, total + new), state.metric_sums, metrics
    )
    updates, opt_state = pupil.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Statistics of a student that starts from weights were learnt already: none are forgotten.
    seen = None if config.student.weights else state.step
    batch_stats = pupil.student.average_statistics(state.batch_stats, batch_stats, seen)
    average = state.average
    if config.student.ema_decay:
        now = {"params": params, "batch_stats": batch_stats}
        average = running_average(average, now, state.step, config.student.ema_decay)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        average=average,
        opt_state=opt_state,
        metric_sums=sums,
    )
    count = sums["steps"]
    return state, {name: total / count for name, total in sums.items() if name != "steps"}


States = tuple[TrainState, ...]
Metrics = tuple[dict[str, jax.Array], ...]


def make_cohort_step(
    pupils: Sequence[Pupil], teacher: Ensemble | None
) -> Callable[..., tuple[States, Metrics]]:
    """Return the per-device step of students that learn together, to run under the axis `AXIS`.

    They share data, views and the teacher's answers, which are computed once; each has its own
    loss, optimiser and network, so each learns as it would alone. What they must share is in
    `cohort.COHORT_MUTABLE`'s complement.

    The step takes `(states, constants, batch)`: what it trains, one for each student; `Constants`;
    and this device's part of the batch, `Batch` or `Streamed`. It returns the new states and
    for each student scalar float32 metrics: `loss`, a mean over examples whatever
    `distill.reduction` is; `grad_norm` before clipping; and `agreement`, the share of views on
    which student and teacher choose the same class. Each is the mean over the global batch, and
    over the steps since the last multiple of `log_every_steps`: with one lambda a batch, a single
    step's loss says little. The sums are part of the state, so a resumed run logs the same.
    """
    config = pupils[0].config
    if all(pupil.config.distill.label_weight == 1 for pupil in pupils):
        teacher = None

    def learn(states: States, constants: Constants, given: Batch | Streamed) -> list[Any]:
        seen = _look(config, teacher, states[0], constants, given)
        learnt: list[Any] = []
        for pupil, state in zip(pupils, states, strict=True):
            if learnt:  # one after another: side by side their maps would all be held at once
                seen, learnt = jax.lax.optimization_barrier((seen, learnt))
            learnt.append(_gradient(pupil, teacher, state, seen))
        return learnt

    def step(
        states: States, constants: Constants, batch: Batch | Streamed
    ) -> tuple[States, Metrics]:
        if config.accumulate == 1:
            learnt = learn(states, constants, batch)
        else:  # the parts one after another: what one of them holds is what must fit
            # `devices.shard` has put this device's shares of the parts one behind the other.
            parts = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), batch)
            each = jax.lax.map(lambda part: learn(states, constants, part), parts)
            learnt = jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
        if config.batch_norm.sync:  # then statistics are equal on all devices
            means = _mean_over_devices([(grads, metrics) for grads, metrics, _ in learnt])
            learnt = [(*mean, stats) for mean, (_, _, stats) in zip(means, learnt, strict=True)]
        else:
            learnt = _mean_over_devices(learnt)
        updated = [
            _update(pupil, state, *its)
            for pupil, state, its in zip(pupils, states, learnt, strict=True)
        ]
        return tuple(state for state, _ in updated), tuple(metrics for _, metrics in updated)

    return step


def make_train_step(
    config: ConfigDict,
    student: Network,
    teacher: Ensemble | None,
    optimizer: optax.GradientTransformation,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return `make_cohort_step` of one student, without the tuples."""
    together = make_cohort_step((Alone(config, student, optimizer),), teacher)

    def step(
        state: TrainState, constants: Constants, batch: Batch | Streamed
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (state,), (metrics,) = together((state,), constants, batch)
        return state, metrics

    return step


class Alone(NamedTuple):
    """A `Pupil` and nothing else."""

    config: ConfigDict
    student: Network
    optimizer: optax.GradientTransformation
