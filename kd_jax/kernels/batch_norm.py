"""Batch norm in training and the activation after it, as compiled passes with their own gradient.

The mathematics are Flax's. Autodiff would keep the centred maps for the gradient, which is one more
pass to memory and back, and XLA makes one pass for each sum.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.kernels import native
from kd_jax.kernels.activations import ACTIVATIONS

EPSILON = 1e-5  # the default; some networks have another


def suits(x: jax.Array) -> bool:
    """Tell whether `normalise` can compute the batch norm of these maps."""
    return (
        x.dtype == jnp.float32
        and x.shape[-1] % native.LANES == 0
        and native.target(native.NORM_STATISTICS) is not None
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis: str | None, epsilon: float, name: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the activation of the normalised maps, and their mean and variance.

    No gradient flows through mean and variance as outputs.

    Args:
      x: float32 `[..., channels]`.
      scale, bias: float32 `[channels]`.
      axis: name of the pmap axis of the devices whose pixels are normalised together, or None.
      epsilon: added to the variance.
      name: of the activation, in `ACTIVATIONS`.
    """
    return _forward(x, scale, bias, axis, epsilon, name)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis: str | None, epsilon: float, name: str
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    shape = (2, x.shape[-1])
    mean, square = _mean(native.call(native.NORM_STATISTICS, shape, x), x, axis)
    variance = jnp.maximum(0.0, square - mean**2)
    over_deviation = lax.rsqrt(variance + epsilon)
    y = ACTIVATIONS[name]((x - mean) * (over_deviation * scale) + bias)
    # Where the variance was 0 or less because of rounding, it was clipped and has no gradient.
    of_variance = jnp.where(variance > 0, over_deviation**2, 0.0)
    return (y, mean, variance), (x, mean, over_deviation, of_variance, scale, bias)


def _backward(
    axis: str | None,
    epsilon: float,
    name: str,
    saved: tuple[jax.Array, ...],
    grads: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, mean, over_deviation, of_variance, scale, bias = saved
    multiplier = over_deviation * scale
    sums = native.call(
        native.NORM_GRADIENT, (2, x.shape[-1]), x, grads[0], mean, multiplier, bias,
        activation=list(ACTIVATIONS).index(name),
    )  # fmt: skip
    of_shift, of_product = _mean(sums, x, axis)
    centred = x - mean
    before = jax.vjp(ACTIVATIONS[name], centred * multiplier + bias)[1](grads[0])[0]
    of_x = multiplier * (before - of_shift - centred * (of_variance * of_product))
    return of_x, sums[1] * over_deviation, sums[0]


def _mean(sums: jax.Array, x: jax.Array, axis: str | None) -> jax.Array:
    """Return means over the pixels of all devices from the sums over those of this device."""
    means = sums * (x.shape[-1] / x.size)
    return means if axis is None else lax.pmean(means, axis)


normalise.defvjp(_forward, _backward)
