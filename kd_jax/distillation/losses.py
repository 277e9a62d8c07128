"""Losses of distillation, functions of logits, computed in float32 log space.

No logarithm of a probability is taken, so all losses are finite for any finite logits, and
bfloat16 networks are compared in float32. Unless a docstring says otherwise, a loss sums over
classes and returns one value for each example, float32 `[n]`, in nats.

A new loss needs its formula here, a case in `objective.distillation_loss`, its name among the
choices of `distill.loss` in `config/fields.py`, and a float64 reference in
`tests/distillation/test_losses.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Names in `config.distill.loss`. `ON_LOGITS` compare logits and not softened predictions: then the
# target of several teachers is the mean of their logits. `ON_CHOICE` read only the class that the
# teachers choose, which the temperature does not change.
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

    The factor T^2 makes the size of the gradient independent of T: as T grows, the gradient tends
    to that of (1 / (2 * classes)) * squared distance of the centred logits.

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

    It penalises probability of the student where the teacher has none. Arguments as
    `kl_divergence`.
    """
    return kl_divergence(student_logits, teacher_logits, temperature)


def jensen_shannon(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """Mean of KL(teacher || m) and KL(student || m), where m is the mean prediction, times T^2.

    It is at most T^2 log 2.

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

    It is the limit of T^2 KL for large T, except that a shift common to all classes counts too.

    Source: Ba and Caruana 2014; Kim et al. 2021.
    """
    gap = student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)
    return 0.5 * jnp.mean(gap**2, axis=-1)


def hard_label(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """Cross-entropy on the class of the teacher's largest logit: no temperature.

    NaN where a logit of the teacher is not finite, since arg-max would choose a NaN silently.
    """
    choice = jnp.argmax(teacher_logits, axis=-1)
    loss = -jnp.take_along_axis(log_probs(student_logits), choice[..., None], axis=-1)[..., 0]
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
      inter: weight of the correlation over classes, for each example.
      intra: weight of the correlation over examples, averaged over classes.
      gather: returns `[global n, classes]` from a device's `[n, classes]`: the correlation over
        examples is one of the global batch.

    Source: Huang et al. 2022, section 3.
    """
    teacher = jnp.exp(log_probs(teacher_logits, temperature))
    student = jnp.exp(log_probs(student_logits, temperature))
    over_classes = 1.0 - _correlation(teacher, student, axis=-1)
    over_examples = jnp.mean(1.0 - _correlation(gather(teacher), gather(student), axis=0))
    return temperature**2 * (inter * over_classes + intra * over_examples)


def _correlation(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Return Pearson's correlation along an axis; 0 with a finite slope where one is constant."""
    a = a - jnp.mean(a, axis=axis, keepdims=True)
    b = b - jnp.mean(b, axis=axis, keepdims=True)
    tiny = 1e-12  # the slope of a square root at 0 is infinite
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
    """Decoupled KD: weighted sum of two KLs, times temperature squared.

    The first is that of the labelled class against the rest, the second that among the other
    classes. `kl_divergence` is the case of `target` 1 and `others` equal to the teacher's
    probability of all other classes, a factor that makes the second part small in ordinary KD.

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
        target = jnp.sum(jnp.where(is_target, whole, 0.0), axis=-1)
        rest = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, whole), axis=-1)
        among = jax.nn.log_softmax(jnp.where(is_target, -jnp.inf, scaled))
        return jnp.stack([target, rest], axis=-1), jnp.where(is_target, 0.0, among)

    teacher_pair, teacher_among = parts(teacher_logits)
    student_pair, student_among = parts(student_logits)
    weights = jnp.where(is_target, 0.0, jnp.exp(teacher_among))
    among = jnp.sum(weights * (teacher_among - student_among), axis=-1)
    return temperature**2 * (target * _kl(teacher_pair, student_pair) + others * among)


def standardize(logits: jax.Array) -> jax.Array:
    """Return logits with mean 0 and standard deviation 1 over the classes, float32.

    The student then has to match the teacher's logits only up to shift and scale.

    Source: Sun et al. 2024.
    """
    logits = logits.astype(jnp.float32)
    logits = logits - jnp.mean(logits, axis=-1, keepdims=True)
    return logits / jnp.sqrt(jnp.mean(logits**2, axis=-1, keepdims=True) + 1e-12)


def mean_of_probabilities(logits: jax.Array, shares: jax.Array, temperature: float) -> jax.Array:
    """Return logits `[..., classes]` whose softened prediction is the weighted mean of several.

    `softmax(result / T)` is the mean of `softmax(logits[k] / T)`: so every loss can treat an
    ensemble as one teacher.

    Args:
      logits: `[teachers, ..., classes]`.
      shares: `[teachers]`, weights with sum 1.
      temperature: T > 0.
    """
    weights = jnp.log(shares).reshape(-1, *(1,) * (logits.ndim - 1))
    return temperature * jax.nn.logsumexp(log_probs(logits, temperature) + weights, axis=0)


def mean_of_logits(logits: jax.Array, shares: jax.Array) -> jax.Array:
    """Return the weighted mean of several logits, float32 `[..., classes]`.

    Half the squared distance to this mean, and the mean of half the squared distances to each,
    differ by a constant. Arguments as `mean_of_probabilities`.
    """
    return jnp.tensordot(shares, logits.astype(jnp.float32), axes=1)


def smooth_labels(label_probs: jax.Array, smoothing: float) -> jax.Array:
    """Spread the fraction `smoothing` of label probabilities `[..., classes]` over all classes.

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
