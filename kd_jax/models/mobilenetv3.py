"""MobileNetV3, small and large, in the two forms that the study confuses.

- `torchvision` has the strides for ImageNet, so the last map of a 32-pixel image is one pixel. The
  study trained this form.
- `cifar` has stride 1 in the stem and in the first block that would halve the resolution: that is
  the first of the small network (maps of 32, 32, 16, 8, 4 pixels), whose costs are in Table 1 of
  the study, and the second of the large one (32, 32, 32, 16, 8, 4).

They also differ in squeeze-excite (place, biases, hidden width), in the last 1x1 convolution and
in the constants of batch norm. Each difference is one line below.

Source: Howard et al. 2019, tables 1 and 2. The forms follow torchvision and ShowLo/MobileNetV3, and
the submodules have the names of those PyTorch models, so their weights need no table of names.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.kernels import activations
from kd_jax.models import layers, quantize
from kd_jax.models.norm import BatchNorm, batch_norm


class Row(NamedTuple):
    """One inverted residual: a row of a table in the paper."""

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    hard: bool
    stride: int


SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)
LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
SMALL_LAST_CHANNELS, LARGE_LAST_CHANNELS = 1024, 1280


def _keep_resolution(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return the rows of the CIFAR form: the first stride of 2 becomes 1."""
    first = next(i for i, row in enumerate(rows) if row.stride == 2)
    return (*rows[:first], rows[first]._replace(stride=1), *rows[first + 1 :])


def _activation(hard: bool) -> str:
    return "hard_swish" if hard else "relu"


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Return the hard sigmoid, whose range is known where the network is quantised."""
    return quantize.within(activations.hard_sigmoid(x), (0.0, 1.0))


class TorchvisionBlock(nn.Module):
    """Inverted residual with squeeze-excite after the activation, with biases."""

    row: Row
    norm: functools.partial[BatchNorm]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        row, activation = self.row, _activation(self.row.hard)
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        part = 0
        y = x
        if row.expanded != x.shape[-1]:
            y = conv(row.expanded, 1, name="block.0.0")(y)
            y = self.norm(name="block.0.1", activation=activation)(y)
            part = 1
        y = conv(
            row.expanded, row.kernel_size, row.stride, row.expanded, name=f"block.{part}.0"
        )(y)  # fmt: skip
        y = self.norm(name=f"block.{part}.1", activation=activation)(y)
        part += 1
        if row.squeeze:
            scale = quantize.result(self, "squeezed", jnp.mean(y, axis=(1, 2), keepdims=True))
            hidden = layers.round_to_multiple(row.expanded / 4)
            scale = conv(hidden, use_bias=True, name=f"block.{part}.fc1")(scale)
            scale = layers.activate(self, "hidden", scale, "relu")
            scale = conv(row.expanded, use_bias=True, name=f"block.{part}.fc2")(scale)
            scale = quantize.result(self, "scale", scale)
            y = quantize.result(self, "excited", y * hard_sigmoid(scale))
            part += 1
        y = conv(row.features, name=f"block.{part}.0")(y)
        y = self.norm(name=f"block.{part}.1")(y)
        if row.stride != 1 or x.shape[-1] != row.features:
            return y
        return quantize.result(self, "sum", x + y)


class CifarBlock(nn.Module):
    """Inverted residual with squeeze-excite before the activation, without biases."""

    row: Row
    norm: functools.partial[BatchNorm]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        row, activation = self.row, _activation(self.row.hard)
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        dense = functools.partial(layers.Dense, use_bias=False, dtype=self.dtype)
        residual = row.stride == 1 and x.shape[-1] == row.features
        last_norm = ".lastBN" if residual else ""
        y = x
        # Without an expansion the depthwise part is in "conv1", and the names after it shift.
        depthwise, linear, linear_norm = "conv2", "conv2.4", f"conv2.5{last_norm}"
        if row.expanded == x.shape[-1]:
            depthwise, linear, linear_norm = "conv1", "conv2.0", f"conv2.1{last_norm}"
        else:
            y = conv(row.expanded, 1, name="conv1.0")(y)
            y = self.norm(name="conv1.1", activation=activation)(y)
        y = conv(
            row.expanded, row.kernel_size, row.stride, row.expanded, name=f"{depthwise}.0"
        )(y)  # fmt: skip
        between = "none" if row.squeeze else activation
        y = self.norm(name=f"{depthwise}.1", activation=between)(y)
        if row.squeeze:
            scale = quantize.result(self, "squeezed", jnp.mean(y, axis=(1, 2)))
            scale = dense(row.expanded // 4, activation="relu", name=f"{depthwise}.2.fc.0")(scale)
            scale = dense(row.expanded, name=f"{depthwise}.2.fc.2")(scale)
            y = y * hard_sigmoid(scale)[:, None, None, :]
            y = layers.activate(self, "excited", y, activation)
        y = conv(row.features, name=linear)(y)
        y = self.norm(name=linear_norm)(y)
        return quantize.result(self, "sum", x + y) if residual else y


class MobileNetV3(nn.Module):
    """MobileNetV3 in its torchvision form (`cifar=False`) or its CIFAR form."""

    num_classes: int
    rows: tuple[Row, ...]
    last_channels: int
    cifar: bool = False
    axis_name: str | None = None
    dtype: Any = None
    dropout_rate: float = 0.0
    kernel_std = staticmethod(layers.kernel_std)

    @property
    def batch_norm_momentum(self) -> float:
        """Momentum of the running statistics: one minus PyTorch's."""
        return 0.9 if self.cifar else 0.99

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        epsilon = 1e-5 if self.cifar else 1e-3
        norm = batch_norm(train, self.axis_name, self.dtype, epsilon=epsilon)
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        block = CifarBlock if self.cifar else TorchvisionBlock
        features = "featureList" if self.cifar else "features"

        x = conv(16, 3, 1 if self.cifar else 2, name=f"{features}.0.0")(x)
        x = norm(name=f"{features}.0.1", activation="hard_swish")(x)
        rows = _keep_resolution(self.rows) if self.cifar else self.rows
        for i, row in enumerate(rows, start=1):
            x = block(row, norm, self.dtype, name=f"{features}.{i}")(x)
        x = conv(6 * self.rows[-1].features, name=f"{features}.{len(self.rows) + 1}.0")(x)
        x = norm(name=f"{features}.{len(self.rows) + 1}.1", activation="hard_swish")(x)
        x = quantize.result(self, "mean", jnp.mean(x, axis=(1, 2), keepdims=True))

        dense = functools.partial(layers.Dense, dtype=self.dtype)
        if self.cifar:
            x = conv(self.last_channels, name="last_stage_layers.1")(x)[:, 0, 0]
            x = layers.activate(self, "last", x, "hard_swish")
            head = "classifier.1"
        else:
            x = dense(self.last_channels, activation="hard_swish", name="classifier.0")(x[:, 0, 0])
            head = "classifier.3"
        x = layers.dropout(x, self.dropout_rate, dropout_keys)
        return dense(self.num_classes, name=head)(x)


small = functools.partial(MobileNetV3, rows=SMALL, last_channels=SMALL_LAST_CHANNELS)
large = functools.partial(MobileNetV3, rows=LARGE, last_channels=LARGE_LAST_CHANNELS)
