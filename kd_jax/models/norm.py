"""Batch norm with the activation after it, and the running averages that training keeps.

Parameters, statistics and mathematics are Flax's. On CPU training takes passes of its own: autodiff
would keep the centred maps for the gradient, another pass to memory and back, and XLA makes a pass
of every sum.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kd_jax import native
from kd_jax.models import forms
from kd_jax.models.layers import current_lowering, hard_swish

EPSILON = 1e-5  # unless a network has its own
# In the order of `native/batch_norm.h`.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "hard_swish": hard_swish,
}


_kept: frozenset[str] = frozenset()


@contextlib.contextmanager
def keeping(paths: frozenset[str]) -> Iterator[None]:
    """Trace the norms at these paths, joined by `/`, in eval mode: their statistics are kept."""
    global _kept
    before, _kept = _kept, paths
    try:
        yield
    finally:
        _kept = before


class BatchNorm(nn.BatchNorm):
    """Flax's, followed by an activation: `none`, `relu`, `relu6` or `hard_swish`.

    Made by `batch_norm` alone: the compiled form knows none of Flax's other options.
    """

    train: bool = False
    activation: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Return the activation of the normalised `x` `[..., channels]`."""
        running = not self.train or "/".join(self.path) in _kept
        if running or self.is_initializing() or not self._compiled(x):
            y = super().__call__(x, use_running_average=running)
            return ACTIVATIONS[self.activation](y)
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        y, mean, variance = _train(x, scale, bias, self.axis_name, self.epsilon, self.activation)
        for name, value in (("mean", mean), ("var", variance)):
            self.put_variable("batch_stats", name, value)
        return y

    def _compiled(self, x: jax.Array) -> bool:
        if current_lowering() != "cpu":
            return False
        return forms.compiles(forms.BATCH_NORM, self._can_compile(x))

    def _can_compile(self, x: jax.Array) -> bool:
        return (
            x.dtype == jnp.float32
            and self.dtype in (None, jnp.float32)
            and x.shape[-1] % native.LANES == 0
            and native.target(native.NORM_STATISTICS) is not None
        )


def batch_norm(
    train: bool, axis_name: str | None, dtype: Any, *, epsilon: float = EPSILON
) -> functools.partial[BatchNorm]:
    """Return the batch norm of one network, still to be named at each use.

    In training the statistics are those of the whole batch across `axis_name`, in float32, and
    they leave the module as they are (momentum 0): `running_average` keeps the running ones.
    """
    return functools.partial(
        BatchNorm,
        train=train,
        axis_name=axis_name,
        momentum=0.0,
        epsilon=epsilon,
        dtype=dtype,
    )


def running_average(running: Any, new: Any, step: jax.Array | int | None, momentum: float) -> Any:
    """Return the running average, of batch statistics or of weights, after one more step.

    `momentum` is the share of the old (for batch norm Flax's, one minus PyTorch's), but it is
    reached gradually: step t counts with at least 9 / (10 + t). A plain average of statistics
    starts from mean 0 and variance 1 and forgets them so slowly that torchvision's MobileNetV3
    (momentum 0.99, 34 norms in a row) answers at chance in eval mode for its first hundreds of
    steps. From step 890 on, at 0.99, the two are the same.

    The variance is the biased one, where PyTorch keeps the unbiased: they differ by n / (n - 1),
    n being the pixels of the global batch.

    Args:
      running, new: trees of the same structure.
      step: number of updates made before this one; None where `running` had been learnt before
        them: then it is not to be forgotten, and `momentum` holds from the start.
      momentum: the share of the old, in [0, 1).
    """
    old_share = jnp.asarray(momentum, jnp.float32)
    if step is not None:
        step = jnp.asarray(step, jnp.float32)
        old_share = jnp.minimum(momentum, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda old, value: old_share * old + (1.0 - old_share) * value, running, new
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _train(
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
    return _train_forward(x, scale, bias, axis, epsilon, name)[0]


def _train_forward(
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


def _train_backward(
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


_train.defvjp(_train_forward, _train_backward)
