"""One training step: view, teacher, student, loss, update. The heart of the project.

Everything random is a function of (seed, step, position in the global batch), and everything that
leaves a step is reduced over all devices: so 1, 2 or 8 devices give the same training, and a
resumed run the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from kd_jax import augment, losses, views
from kd_jax.batches import Batch
from kd_jax.ensemble import Ensemble
from kd_jax.models import Network, Variables
from kd_jax.models.layers import running_average
from kd_jax.parallel import AXIS


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step; what a checkpoint holds.

    Attributes:
      step: int32, number of updates made.
      seed: int32, of every random number in the run.
      params, batch_stats: the student's variables, as they are trained.
      average: the running average of both, under the same names; empty when none is kept.
      opt_state: of the optax chain.
      metric_sums: float32 scalars, since the last step that was logged.
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
        metric_sums={name: jnp.zeros(()) for name in metrics},
    )


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
      labels: int `[n]`, read by `losses.READ_LABELS` alone.
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
      shares: of the targets, which sum to 1.
      label_probs: `[n, classes]`; not read when `label_weight` is 0.
      labels: int `[n]`, of the examples themselves; read by losses that need them.
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


def _mean_over_devices(tree: Any) -> Any:
    """Return the mean of a float32 tree over `AXIS`, in a single collective."""
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, AXIS))


def make_train_step(
    config: ConfigDict,
    student: Network,
    teacher: Ensemble | None,
    optimizer: optax.GradientTransformation,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return the per-device step, to be run under an axis called `AXIS`.

    The step takes `(state, constants, batch)`: what it trains, `Constants`, and this device's part
    of the batch, `Batch` or `views.Streamed`. It returns the new state and scalar float32 metrics:
    `loss`, a mean over examples whatever `distill.reduction` is; `grad_norm` before clipping; and
    `agreement`, the share of views on which student and teacher choose the same class. Each is the
    mean over the global batch, and over the steps since the last multiple of `log_every_steps`:
    with one lambda a batch, a single step's loss says little. The sums are part of the state, so a
    resumed run logs the same numbers.
    """
    distill = config.distill
    # A sum over the global batch is its mean, times its size: for any number of devices.
    scale = config.batch_size if distill.reduction == "sum" else 1

    def gradient(
        state: TrainState, constants: Constants, given: Batch | views.Streamed
    ) -> tuple[Any, dict[str, jax.Array], Any]:
        """Return gradients, metrics and batch statistics of a part of the batch."""
        view = views.make(constants.images, given, state.seed, state.step, config)
        batch = given.batch if isinstance(given, views.Streamed) else given
        targets: tuple[jax.Array, ...] = ()
        shares: tuple[float, ...] = ()
        consensus = None
        if distill.label_weight < 1:
            assert teacher is not None
            if view.teacher is None:
                assert constants.teacher_logits is not None
                logits = constants.teacher_logits[:, batch.example]
            else:
                logits = teacher.logits(constants.teacher_variables, view.teacher)
            logits = jax.lax.stop_gradient(logits)
            targets, shares = teacher.targets(logits, distill.temperature)
            consensus = teacher.mean(logits)
        labels, label_probs = None, None
        if constants.labels is not None:
            labels = constants.labels[batch.example]
            own = jax.nn.one_hot(labels, student.num_classes)
            partner = jax.nn.one_hot(constants.labels[batch.partner], student.num_classes)
            label_probs = augment.mix(own, partner, view.share)
            if distill.label_smoothing:
                label_probs = losses.smooth_labels(label_probs, distill.label_smoothing)
        dropout_keys = None
        if config.student.dropout:
            dropout_key = augment.stream_key(state.seed, state.step, augment.STREAM_DROPOUT)
            dropout_keys = augment.position_keys(dropout_key, batch.position)

        def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, batch_stats = student.train_logits(variables, view.student, dropout_keys)
            loss = jnp.mean(student_loss(config, logits, targets, shares, label_probs, labels))
            return scale * loss, (loss, logits, batch_stats)

        grads, (loss, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
        metrics = {"loss": loss}
        if consensus is not None:
            same = jnp.argmax(logits, axis=-1) == jnp.argmax(consensus, axis=-1)
            metrics["agreement"] = jnp.mean(same.astype(jnp.float32))
        return grads, metrics, batch_stats

    def step(
        state: TrainState, constants: Constants, batch: Batch | views.Streamed
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if config.accumulate == 1:
            grads, metrics, batch_stats = gradient(state, constants, batch)
        else:  # the parts one after another: what one of them holds is what must fit
            parts = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), batch)
            each = jax.lax.map(lambda part: gradient(state, constants, part), parts)
            grads, metrics, batch_stats = jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
        if config.batch_norm.sync:  # then they are equal on all devices
            grads, metrics = _mean_over_devices((grads, metrics))
        else:
            grads, metrics, batch_stats = _mean_over_devices((grads, metrics, batch_stats))
        metrics["grad_norm"] = optax.global_norm(grads)
        summed = state.step % config.log_every_steps
        sums = jax.tree.map(
            lambda total, new: jnp.where(summed == 0, new, total + new), state.metric_sums, metrics
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        batch_stats = student.average_statistics(state.batch_stats, batch_stats, state.step)
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
        return state, jax.tree.map(lambda total: total / (summed + 1), sums)

    return step


def make_predict_step(
    logits_of: Callable[[Any, jax.Array], jax.Array],
) -> Callable[..., jax.Array]:
    """Return the per-device step `(variables, own, others, share) -> logits` in eval mode.

    `logits_of(variables, pixels)` gives `[..., n, classes]`. `own` is this device's part of the
    images to look at, uint8 `[n, H, W, C]`. `share` is None, or how much of each is itself while
    the rest is the image of `others`. The logits returned are those of all devices, float32
    `[..., global n, classes]`.
    """

    def predict(
        variables: Any, own: jax.Array, others: jax.Array | None, share: jax.Array | None
    ) -> jax.Array:
        pixels = augment.to_pixels(own)
        if share is not None:
            assert others is not None
            pixels = augment.mix(pixels, augment.to_pixels(others), share)
        logits = logits_of(variables, pixels)
        return jax.lax.all_gather(logits, AXIS, axis=logits.ndim - 2, tiled=True)

    return predict
