"""One training step: view, teacher, student, loss, update. The heart of the project.

Everything random is a function of (seed, step, position in the global batch), and everything that
leaves a step is reduced over all devices: so 1, 2 or 8 devices give the same training, and a
resumed run the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from kd_jax import augment, losses
from kd_jax.batches import Array, Batch
from kd_jax.models import Network, Variables
from kd_jax.parallel import AXIS


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step; what a checkpoint holds.

    Attributes:
      step: int32, number of updates made.
      seed: int32, of every random number in the run.
      params, batch_stats: the student's variables.
      opt_state: of the optax chain.
      metric_sums: float32 scalars, since the last step that was logged.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    metric_sums: dict[str, jax.Array]

    @property
    def variables(self) -> Variables:
        """The student's variables, as `apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    config: ConfigDict,
    student: Network,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """Return the state before the first step: a pure function of the config's seed."""
    variables = student.init(config.seed, image_shape)
    metrics = ("loss", "grad_norm", *(("agreement",) if config.distill.label_weight < 1 else ()))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(config.seed, jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        metric_sums={name: jnp.zeros(()) for name in metrics},
    )


def make_view(
    images: jax.Array, batch: Batch, seed: jax.Array, step: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Make the one view that every network sees.

    Args:
      images: uint8 `[N, H, W, C]`, the training set.
      batch: this device's part of the batch, `[n]` each.
      seed, step: int32 scalars.
      config: `augment` and `mixup` are read.

    Returns:
      pixels float32 `[n, H, W, C]` in [0, 1], and lambda float32 `[n]`, the share of the example
      itself (1 without mixup).
    """
    key = augment.stream_key(seed, step, augment.STREAM_CROP_FLIP)

    def look_up(indices: Array, positions: Array) -> jax.Array:
        keys = augment.position_keys(key, positions)
        options = config.augment
        view = augment.crop_and_flip(
            images, indices, keys, crop_pad_px=options.crop_pad_px, flip=options.flip
        )
        return augment.to_pixels(view)

    pixels = look_up(batch.example, batch.position)
    count = batch.example.shape[:1]
    if config.mixup.kind == "none":
        return pixels, jnp.ones(count)
    lambda_key = augment.stream_key(seed, step, augment.STREAM_LAMBDA)
    if config.mixup.kind == "batch":
        lam = jnp.broadcast_to(jax.random.uniform(lambda_key), count)
    else:
        lam = jax.vmap(jax.random.uniform)(augment.position_keys(lambda_key, batch.position))
    # The partner is made anew from its own index and position, so it may live on another device.
    partner = look_up(batch.partner, batch.partner_position)
    return augment.mix(pixels, partner, lam), lam


def student_loss(
    config: ConfigDict,
    student_logits: jax.Array,
    teacher_logits: jax.Array | None,
    label_probs: jax.Array | None,
) -> jax.Array:
    """Return the loss of each example, float32 `[n]`.

    Args:
      config: `distill` is read.
      student_logits: `[n, classes]`.
      teacher_logits: `[n, classes]`; not read when `label_weight` is 1.
      label_probs: `[n, classes]`; not read when `label_weight` is 0.
    """
    weight = config.distill.label_weight
    loss = jnp.zeros(student_logits.shape[:1])
    if weight < 1:
        assert teacher_logits is not None
        temperature = config.distill.temperature
        loss += (1 - weight) * losses.kl_divergence(teacher_logits, student_logits, temperature)
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
    teacher: Network | None,
    optimizer: optax.GradientTransformation,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return the per-device step, to be run under an axis called `AXIS`.

    The step takes `(state, teacher_variables, images, labels, batch)`: the training set's images
    uint8 `[N, H, W, C]`, its labels int32 `[N]` or None when the recipe is label-free, and this
    device's part of the batch. It returns the new state and scalar float32 metrics: `loss`,
    `grad_norm` before clipping, and `agreement`, the share of views on which student and teacher
    choose the same class. Each is the mean over the global batch, and over the steps since the last
    multiple of `log_every_steps`: with one lambda a batch, a single step's loss says little. The
    sums are part of the state, so a resumed run logs the same numbers.
    """
    distils = config.distill.label_weight < 1
    uses_labels = config.distill.label_weight > 0

    def step(
        state: TrainState,
        teacher_variables: Variables | None,
        images: jax.Array,
        labels: jax.Array | None,
        batch: Batch,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        pixels, lam = make_view(images, batch, state.seed, state.step, config)
        teacher_logits = None
        if distils:
            assert teacher is not None
            assert teacher_variables is not None
            teacher_logits = jax.lax.stop_gradient(teacher.logits(teacher_variables, pixels))
        label_probs = None
        if uses_labels:
            assert labels is not None
            own = jax.nn.one_hot(labels[batch.example], student.num_classes)
            partner = jax.nn.one_hot(labels[batch.partner], student.num_classes)
            label_probs = augment.mix(own, partner, lam)
        dropout_keys = None
        if config.student.dropout:
            dropout_key = augment.stream_key(state.seed, state.step, augment.STREAM_DROPOUT)
            dropout_keys = augment.position_keys(dropout_key, batch.position)

        def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, batch_stats = student.train_logits(variables, pixels, dropout_keys)
            loss = jnp.mean(student_loss(config, logits, teacher_logits, label_probs))
            return loss, (logits, batch_stats)

        grad_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (logits, batch_stats)), grads = grad_of(state.params)
        metrics = {"loss": loss}
        if teacher_logits is not None:
            same = jnp.argmax(logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1)
            metrics["agreement"] = jnp.mean(same.astype(jnp.float32))
        grads, metrics = _mean_over_devices((grads, metrics))
        metrics["grad_norm"] = optax.global_norm(grads)
        summed = state.step % config.log_every_steps
        sums = jax.tree.map(
            lambda total, new: jnp.where(summed == 0, new, total + new), state.metric_sums, metrics
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=student.average_statistics(state.batch_stats, batch_stats, state.step),
            opt_state=opt_state,
            metric_sums=sums,
        )
        return state, jax.tree.map(lambda total: total / (summed + 1), sums)

    return step


def make_predict_step(network: Network) -> Callable[..., jax.Array]:
    """Return the per-device step `(variables, images, index) -> logits` in eval mode.

    `index` is this device's part, int32 `[n]`, of the examples to look at; the logits returned are
    those of all devices, float32 `[global n, classes]`.
    """

    def predict(variables: Variables, images: jax.Array, index: jax.Array) -> jax.Array:
        logits = network.logits(variables, augment.to_pixels(images[index]))
        return jax.lax.all_gather(logits, AXIS, tiled=True)

    return predict
