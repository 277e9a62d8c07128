"""MobileNetV2's block as one compiled pass, for frozen networks on CPU.

Computed one after another, expansion, depthwise convolution and projection write and read maps with
six times the channels of the block; even for a few images these are larger than the cache of a
core. The compiled pass takes some of the expanded channels through all three steps at a time.
Parameters and mathematics are the same. Batch norm is folded into the weights, so results differ by
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.kernels import conv, forms, lowering, native, plain
from kd_jax.kernels.batch_norm import EPSILON


class _Weights(NamedTuple):
    """Kernels `[in, hidden]`, `[9, hidden]`, `[hidden, out]`, and a norm `[2, columns]` of each.

    The two rows of a norm are the scale and the shift of the frozen batch norm. A block without an
    expansion has a first kernel of `[0, hidden]`, with hidden equal to in.
    """

    expand: jax.Array
    expand_norm: jax.Array
    filter: jax.Array
    filter_norm: jax.Array
    project: jax.Array
    project_norm: jax.Array


def is_chosen(x: jax.Array, hidden: int, features: int) -> bool:
    """Tell whether a block is computed by `inverted_residual`, in the current trace.

    Args:
      x: the input of the block.
      hidden, features: channels after the expansion and after the projection.
    """
    if not (lowering.is_frozen() and lowering.current() == "cpu"):
        return False
    possible = (
        x.dtype == jnp.float32
        and hidden % native.LANES == features % native.LANES == 0
        and native.target(native.INVERTED_RESIDUAL) is not None
    )
    return forms.takes_compiled(forms.FROZEN_BLOCK, possible)


def inverted_residual(x: jax.Array, variables: Mapping[str, Any], stride: int) -> jax.Array:
    """Return expansion, 3x3 depthwise convolution and projection, each with a frozen batch norm.

    ReLU6 follows the first two. Some blocks have no expansion. The input is added if the output has
    the same shape.

    Args:
      x: float32 `[n, H, W, channels]`.
      variables: of `mobilenetv2.InvertedResidual`, float32.
      stride: of the depthwise convolution.

    Returns:
      float32 `[n, ceil(H / stride), ceil(W / stride), features]`.
    """
    params, running = variables["params"], variables["batch_stats"]

    def kernel(name: str) -> jax.Array:
        return params[name]["kernel"].reshape(-1, params[name]["kernel"].shape[-1])

    def norm(name: str) -> jax.Array:
        scale = params[name]["scale"] / jnp.sqrt(running[name]["var"] + EPSILON)
        return jnp.stack([scale, params[name]["bias"] - running[name]["mean"] * scale])

    if "conv.3" in params:
        expand, expand_norm = kernel("conv.0.0"), norm("conv.0.1")
        filter_names, project_names = ("conv.1.0", "conv.1.1"), ("conv.2", "conv.3")
    else:
        expand, expand_norm = (jnp.zeros((rows, x.shape[-1]), x.dtype) for rows in (0, 2))
        filter_names, project_names = ("conv.0.0", "conv.0.1"), ("conv.1", "conv.2")
    weights = _Weights(
        expand, expand_norm,
        kernel(filter_names[0]), norm(filter_names[1]),
        kernel(project_names[0]), norm(project_names[1]),
    )  # fmt: skip
    return _compiled(x, weights, stride)


def _layer_by_layer(x: jax.Array, weights: _Weights, stride: int) -> jax.Array:
    """Return the plain form of `_compiled`."""

    def scaled(y: jax.Array, norm: jax.Array) -> jax.Array:
        return y * norm[0] + norm[1]

    hidden = weights.filter.shape[1]
    taps = weights.filter.reshape(3, 3, 1, hidden)
    y = x
    if len(weights.expand):
        y = nn.relu6(scaled(conv.conv2d(x, weights.expand[None, None]), weights.expand_norm))
    y = nn.relu6(scaled(conv.conv2d(y, taps, stride, hidden), weights.filter_norm))
    y = scaled(conv.conv2d(y, weights.project[None, None]), weights.project_norm)
    return x + y if y.shape == x.shape else y


@plain.with_plain_gradient(_layer_by_layer, nondiff_argnums=(2,))
def _compiled(x: jax.Array, weights: _Weights, stride: int) -> jax.Array:
    count, height, width, _ = x.shape
    shape = (count, -(-height // stride), -(-width // stride), weights.project.shape[1])
    return native.call(native.INVERTED_RESIDUAL, shape, x, *weights, stride=stride)
