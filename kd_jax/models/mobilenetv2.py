"""MobileNetV2 for small images: the stem and the second stage keep the resolution.

Source: Sandler et al. 2018, table 2, as in chenyaofo/pytorch-cifar-models. Submodules have the
names of that PyTorch model. The last map of a 32-pixel image is 4x4.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.kernels import inverted_residual
from kd_jax.models import layers, quantize
from kd_jax.models.norm import BatchNorm, batch_norm


class Stage(NamedTuple):
    """A row of the table in the paper, with the stride for images of 32 pixels."""

    expansion: int
    features: int
    blocks: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 1),  # ImageNet: 2
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; a shortcut if the shape does not change."""

    expansion: int
    features: int
    stride: int
    norm: functools.partial[BatchNorm]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        expanded = x.shape[-1] * self.expansion
        if inverted_residual.is_chosen(x, expanded, self.features):
            return inverted_residual.inverted_residual(x, self.variables, self.stride)
        y, part = x, 0
        if self.expansion != 1:
            y = conv(expanded, name="conv.0.0")(y)
            y = self.norm(name="conv.0.1", activation="relu6")(y)
            part = 1
        y = conv(expanded, 3, self.stride, expanded, name=f"conv.{part}.0")(y)
        y = self.norm(name=f"conv.{part}.1", activation="relu6")(y)
        y = conv(self.features, name=f"conv.{part + 1}")(y)
        y = self.norm(name=f"conv.{part + 2}")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            return y
        return quantize.result(self, "sum", x + y)


class MobileNetV2(nn.Module):
    """MobileNetV2 with a width multiplier."""

    width: float
    num_classes: int
    axis_name: str | None = None
    dtype: Any = None
    dropout_rate: float = 0.0
    batch_norm_momentum: float = 0.9
    kernel_std = staticmethod(layers.kernel_std)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        norm = batch_norm(train, self.axis_name, self.dtype)
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        x = conv(layers.round_to_multiple(STEM * self.width), 3, name="features.0.0")(x)
        x = norm(name="features.0.1", activation="relu6")(x)
        number = 1
        for stage in STAGES:
            features = layers.round_to_multiple(stage.features * self.width)
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                name = f"features.{number}"
                x = InvertedResidual(
                    stage.expansion, features, stride, norm, self.dtype, name=name
                )(x)  # fmt: skip
                number += 1
        last = layers.round_to_multiple(LAST * max(1.0, self.width))
        x = conv(last, name=f"features.{number}.0")(x)
        x = norm(name=f"features.{number}.1", activation="relu6")(x)
        x = quantize.result(self, "mean", jnp.mean(x, axis=(1, 2)))
        x = layers.dropout(x, self.dropout_rate, dropout_keys)
        return layers.Dense(self.num_classes, dtype=self.dtype, name="classifier.1")(x)
