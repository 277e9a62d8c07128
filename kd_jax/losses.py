"""Losses of distillation. Every one works on logits, in float32 log space.

Probabilities are never formed before a logarithm is taken, so all losses stay finite for any
finite logits, and bfloat16 networks are compared in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


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

    Returns:
      float32 `[...]`: summed over classes, one value an example, in nats.

    Source: Hinton et al. 2015, section 2; Beyer et al. 2021, section 3.
    """
    teacher_log_probs = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    student_log_probs = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher_probs = jnp.exp(teacher_log_probs)
    return temperature**2 * jnp.sum(
        teacher_probs * (teacher_log_probs - student_log_probs), axis=-1
    )


def cross_entropy(logits: jax.Array, label_probs: jax.Array) -> jax.Array:
    """Cross-entropy of `logits` against label probabilities.

    Args:
      logits: `[..., classes]`, any float dtype.
      label_probs: `[..., classes]`, rows sum to 1 (one-hot, smoothed or mixed).

    Returns:
      float32 `[...]`: summed over classes, one value an example, in nats.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(label_probs.astype(jnp.float32) * log_probs, axis=-1)
