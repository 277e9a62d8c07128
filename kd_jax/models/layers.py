"""Convolution, linear layer and dropout: the layers that every network is built from."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.kernels.activations import ACTIVATIONS
from kd_jax.kernels.conv import conv2d
from kd_jax.models import quantize

_HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_DENSE_STD = 0.01  # first values of linear layers in the references of VGG and MobileNet


def kernel_std(path: tuple[str, ...], shape: tuple[int, ...]) -> float:
    """Return the standard deviation of a kernel's first values: He's, over the fan-out.

    That is for convolutions; linear layers have 0.01. The references of most families do the same.
    A module with a function of this name leaves its first values to `Network.init`.
    """
    del path
    return math.sqrt(2.0 / (shape[0] * shape[1] * shape[3])) if len(shape) == 4 else _DENSE_STD


def _dot_general(x: jax.Array, kernel: jax.Array, *options: Any, **more: Any) -> jax.Array:
    return jax.lax.dot_general(x, quantize.weights(kernel), *options, **more)


class Conv(nn.Module):
    """2-D convolution with explicit symmetric padding; `kernel` is `[k, k, in / groups, out]`."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", _HE_FAN_OUT, shape)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        x, kernel, bias = nn.dtypes.promote_dtype(
            x, quantize.weights(kernel), bias, dtype=self.dtype
        )
        x = conv2d(x, kernel, self.stride, self.groups)
        return x if bias is None else x + bias


class Dense(nn.Dense):
    """Flax's linear layer, followed by an activation of `ACTIVATIONS`."""

    activation: str = "none"
    dot_general: Any = _dot_general

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the activation of `x @ kernel + bias`."""
        return activate(self, "output", super().__call__(x), self.activation)


def activate(module: nn.Module, name: str, x: jax.Array, activation: str) -> jax.Array:
    """Return the activation of a result, which is kept as int8 where the network is quantised.

    TensorFlow Lite makes `relu` and `relu6` part of the operation before. Of the others the input
    is kept too.

    Args:
      module: bound, that the result is of.
      name: of the result, in this module.
      x: of any shape.
      activation: a name in `ACTIVATIONS`.
    """
    if activation not in ("none", "relu", "relu6"):
        x = quantize.result(module, f"{name}_linear", x)
    return quantize.result(module, name, ACTIVATIONS[activation](x))


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Drop features with probability `rate`.

    Every example has a key of its own, so that the mask does not depend on the number of devices.

    Args:
      x: `[batch, ...]`.
      rate: in [0, 1).
      keys: PRNG keys `[batch]`, or None for no dropout.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def round_to_multiple(value: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` nearest to `value`, but not more than 10 % below it."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
