"""Losses of distillation. Every one works on logits, in float32 log space.

Probabilities are never formed before a logarithm is taken, so all losses stay finite for any
finite logits, and bfloat16 networks are compared in float32. Classes are summed over unless a
docstring says otherwise; what is returned is one value an example, float32 `[n]`, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Losses, by their names in `config.distill.loss`, that compare logits and not softened predictions:
# several teachers are then one by the mean of their logits. And the loss that reads only the
# teachers' choice, whatever the temperature.
ON_LOGITS = ("squared_error",)
ON_CHOICE = ("hard_label",)

Gather = Callable[[jax.Array], jax.Array]


def log_probs(logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Return float32 log-softmax of `logits / temperature` over the last axis."""
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)


def _kl(of: jax.Array, to: jax.Array) -> jax.Array:
    """Return KL(of || to) `[...]` of log-probabilities `[..., classes]`."""
    return jnp.sum(jnp.exp(of) * (of - to), axis=-1)


def kl_divergence(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """Forward KL(teacher || student) of the softened predictions, times temperature squared.

    The factor T^2 keeps the gradient's size independent of T: as T grows, the gradient tends to
    that of (1 / (2 * classes)) * squared distance of the centred logits.

    Args:
      teacher_logits: `[..., classes]`, any float dtype.
      student_logits: `[..., classes]`, any float dtype.
      temperature: T > 0; both sides are divided by it.

    Source: Hinton et al. 2015, section 2; Beyer et al. 2021, section 3.
    """
    teacher, student = (
        log_probs(teacher_logits, temperature),
        log_probs(student_logits, temperature),
    )
    return temperature**2 * _kl(teacher, student)


def reverse_kl(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """KL(student || teacher) of the softened predictions, times temperature squared.

    It asks the student to put no probability where the teacher has none. Arguments as
    `kl_divergence`.
    """
    return kl_divergence(student_logits, teacher_logits, temperature)


def jensen_shannon(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """Mean of the KLs of both to their mean, times temperature squared; at most T^2 log 2.

    Arguments as `kl_divergence`. Source: Lin 1991.
    """
    teacher, student = (
        log_probs(teacher_logits, temperature),
        log_probs(student_logits, temperature),
    )
    middle = jnp.logaddexp(teacher, student) - math.log(2.0)
    return temperature**2 * 0.5 * (_kl(teacher, middle) + _kl(student, middle))


def squared_error(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """Half the squared difference of the logits, averaged over classes: no temperature.

    The limit of T^2 KL for great T, except that a shift common to all classes counts too.

    Source: Ba and Caruana 2014; Kim et al. 2021.
    """
    gap = student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)
    return 0.5 * jnp.mean(gap**2, axis=-1)


def hard_label(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """Cross-entropy on the class that the teacher would choose: no temperature.

    NaN where a logit of the teacher is not finite: arg-max would choose it without a word.
    """
    chosen = jnp.argmax(teacher_logits, axis=-1)
    loss = -jnp.take_along_axis(log_probs(student_logits), chosen[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.isfinite(teacher_logits).all(axis=-1), loss, jnp.nan)


def dist(
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    temperature: float,
    *,
    inter: float,
    intra: float,
    gather: Gather = lambda probs: probs,
) -> jax.Array:
    """DIST: one minus the correlation of the softened predictions, times temperature squared.

    Args:
      teacher_logits, student_logits: `[n, classes]`.
      temperature: T > 0.
      inter: weight of the correlation over classes, example by example.
      intra: weight of the correlation over examples, averaged over classes.
      gather: makes `[global n, classes]` of a device's `[n, classes]`, since the correlation over
        examples belongs to the whole batch.

    Source: Huang et al. 2022, section 3.
    """
    teacher = jnp.exp(log_probs(teacher_logits, temperature))
    student = jnp.exp(log_probs(student_logits, temperature))
    over_classes = 1.0 - _correlation(teacher, student, axis=-1)
    over_examples = jnp.mean(1.0 - _correlation(gather(teacher), gather(student), axis=0))
    return temperature**2 * (inter * over_classes + intra * over_examples)


def _correlation(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Return Pearson's correlation along an axis; 0 where one does not vary, and still smooth."""
    a = a - jnp.mean(a, axis=axis, keepdims=True)
    b = b - jnp.mean(b, axis=axis, keepdims=True)
    tiny = 1e-12  # against the infinite slope of a root at 0
    lengths = jnp.sqrt(jnp.sum(a**2, axis=axis) + tiny) * jnp.sqrt(jnp.sum(b**2, axis=axis) + tiny)
    return jnp.sum(a * b, axis=axis) / lengths


def dkd(
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    temperature: float,
    labels: jax.Array,
    *,
    target: float,
    others: float,
) -> jax.Array:
    """Decoupled KD: the KL about the labelled class, and that among the others, weighed apart.

    Times temperature squared. `kl_divergence` is the case of `target` 1 and, as `others`, the
    teacher's own probability of all other classes: what tames the second part in ordinary KD.

    Args:
      teacher_logits, student_logits: `[n, classes]`.
      temperature: T > 0.
      labels: int `[n]`.
      target, others: weights of the two parts (alpha and beta).

    Source: Zhao et al. 2022, section 3.
    """
    is_target = jax.nn.one_hot(labels, teacher_logits.shape[-1], dtype=bool)

    def parts(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        scaled = logits.astype(jnp.float32) / temperature
        whole = jax.nn.log_softmax(scaled)
        own = jnp.sum(jnp.where(is_target, whole, 0.0), axis=-1)
        rest = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, whole), axis=-1)
        among = jax.nn.log_softmax(jnp.where(is_target, -jnp.inf, scaled))
        return jnp.stack([own, rest], axis=-1), jnp.where(is_target, 0.0, among)

    teacher_pair, teacher_among = parts(teacher_logits)
    student_pair, student_among = parts(student_logits)
    weights = jnp.where(is_target, 0.0, jnp.exp(teacher_among))
    among = jnp.sum(weights * (teacher_among - student_among), axis=-1)
    return temperature**2 * (target * _kl(teacher_pair, student_pair) + others * among)


def standardize(logits: jax.Array) -> jax.Array:
    """Return logits with mean 0 and standard deviation 1 over the classes, float32.

    The student need then match the teacher's logits only up to shift and scale.

    Source: Sun et al. 2024.
    """
    logits = logits.astype(jnp.float32)
    logits = logits - jnp.mean(logits, axis=-1, keepdims=True)
    return logits / jnp.sqrt(jnp.mean(logits**2, axis=-1, keepdims=True) + 1e-12)


def mean_of_probabilities(logits: jax.Array, shares: jax.Array, temperature: float) -> jax.Array:
    """Return logits `[..., classes]` whose softened prediction is the weighted mean of several.

    `softmax(result / T)` is the mean of `softmax(logits[k] / T)`: so every loss on logits takes
    an ensemble as one teacher.

    Args:
      logits: `[teachers, ..., classes]`.
      shares: `[teachers]`, which sum to 1.
      temperature: T > 0.
    """
    weights = jnp.log(shares).reshape(-1, *(1,) * (logits.ndim - 1))
    return temperature * jax.nn.logsumexp(log_probs(logits, temperature) + weights, axis=0)


def mean_of_logits(logits: jax.Array, shares: jax.Array) -> jax.Array:
    """Return the weighted mean of several logits, float32 `[..., classes]`.

    Half the squared distance to it differs from the mean of those to each by a constant. Arguments
    as `mean_of_probabilities`.
    """
    return jnp.tensordot(shares, logits.astype(jnp.float32), axes=1)


def smooth_labels(label_probs: jax.Array, smoothing: float) -> jax.Array:
    """Spread the share `smoothing` of label probabilities `[..., classes]` over all classes.

    Source: Szegedy et al. 2016, section 7.
    """
    return (1.0 - smoothing) * label_probs + smoothing / label_probs.shape[-1]


def cross_entropy(logits: jax.Array, label_probs: jax.Array) -> jax.Array:
    """Cross-entropy of `logits` against label probabilities.

    Args:
      logits: `[..., classes]`, any float dtype.
      label_probs: `[..., classes]`, rows sum to 1 (one-hot, smoothed or mixed).
    """
    return -jnp.sum(label_probs.astype(jnp.float32) * log_probs(logits), axis=-1)
