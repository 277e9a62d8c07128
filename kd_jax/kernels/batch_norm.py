"""Batch norm in training and the activation after it, as compiled passes with their own gradient.

Mathematics are Flax's. Autodiff would keep the centred maps for the gradient, another pass to
memory and back, and XLA makes a pass of every sum.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.kernels import native
from kd_jax.kernels.activations import ACTIVATIONS

EPSILON = 1e-5  # unless a network has its own


def suits(x: jax.Array) -> bool:
    """Return whether `normalise` can compute the batch norm of these maps."""
    return (
        x.dtype == jnp.float32
        and x.shape[-1] % native.LANES == 0
        and native.target(native.NORM_STATISTICS) is not None
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis: str | None, epsilon: float, name: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the activation of the normalised maps, and mean and variance, which have no gradient.

    Args:
      x: float32 `[..., channels]`.
      scale, bias: float32 `[channels]`.
      axis: of devices whose pixels are normalised together, or None.
      epsilon: added to the variance.
      name: of the activation.
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
    # Where rounding has made the variance 0 or less, it depends on nothing.
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
    """Return means over the pixels of all devices from the sums over this one's."""
    means = sums * (x.shape[-1] / x.size)
    return means if axis is None else lax.pmean(means, axis)


normalise.defvjp(_forward, _backward)
