"""MobileNetV2's block as one compiled pass, for frozen networks on CPU.

Expansion, depthwise filter and projection one after another write and read maps of six times the
block's channels; for a few images that is still more than a core's own cache. `native` takes some
expanded channels through all three at a time. Same parameters, same mathematics; batch norm goes
into the weights, so results differ by rounding.
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
    """Kernels `[in, hidden]`, `[9, hidden]`, `[hidden, out]`, and `[2, columns]` for each.

    The latter are what batch norm comes to once it is frozen: its scale and its shift. A block that
    does not expand has a kernel `[0, hidden]` first, and hidden is in.
    """

    expand: jax.Array
    expand_norm: jax.Array
    filter: jax.Array
    filter_norm: jax.Array
    project: jax.Array
    project_norm: jax.Array


def taken(x: jax.Array, hidden: int, features: int) -> bool:
    """Tell whether a block of so many expanded and projected channels is taken here in one pass."""
    if not (lowering.is_frozen() and lowering.current() == "cpu"):
        return False
    can = (
        x.dtype == jnp.float32
        and hidden % native.LANES == features % native.LANES == 0
        and native.target(native.INVERTED_RESIDUAL) is not None
    )
    return forms.compiles(forms.FROZEN_BLOCK, can)


def inverted_residual(x: jax.Array, variables: Mapping[str, Any], stride: int) -> jax.Array:
    """Expand, filter 3x3 by depth, project, each with batch norm; ReLU6 after the first two.

    Or filter and project, where the block does not expand. And add the input where stride and
    channels leave it its shape.

    Args:
      x: float32 `[n, H, W, channels]`.
      variables: of `mobilenetv2.InvertedResidual`, float32.
      stride: of the filter.

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
        filtering, projecting = ("conv.1.0", "conv.1.1"), ("conv.2", "conv.3")
    else:
        expand, expand_norm = (jnp.zeros((rows, x.shape[-1]), x.dtype) for rows in (0, 2))
        filtering, projecting = ("conv.0.0", "conv.0.1"), ("conv.1", "conv.2")
    weights = _Weights(
        expand, expand_norm,
        kernel(filtering[0]), norm(filtering[1]),
        kernel(projecting[0]), norm(projecting[1]),
    )  # fmt: skip
    return _compiled(x, weights, stride)


def _in_parts(x: jax.Array, weights: _Weights, stride: int) -> jax.Array:
    """Return the same, layer by layer."""

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


@plain.with_plain_gradient(_in_parts, nondiff_argnums=(2,))
def _compiled(x: jax.Array, weights: _Weights, stride: int) -> jax.Array:
    count, height, width, _ = x.shape
    shape = (count, -(-height // stride), -(-width // stride), weights.project.shape[1])
    return native.call(native.INVERTED_RESIDUAL, shape, x, *weights, stride=stride)
