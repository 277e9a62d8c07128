"""ResNets for 32-pixel images: 6n + 2 layers, widths 16, 32, 64.

Source: He et al. 2015, section 4.2, as in chenyaofo/pytorch-cifar-models (1x1 convolution with
batch norm on the shortcut where the shape changes). Submodules have the names of that PyTorch
model, so its weights need no table of names.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import layers, quantize
from kd_jax.models.norm import BatchNorm, batch_norm

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    features: int
    stride: int
    norm: functools.partial[BatchNorm]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(layers.Conv, self.features, dtype=self.dtype)
        y = conv(3, self.stride, name="conv1")(x)
        y = self.norm(name="bn1", activation="relu")(y)
        y = self.norm(name="bn2")(conv(3, name="conv2")(y))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(1, self.stride, name="downsample.0")(x)
            x = self.norm(name="downsample.1")(x)
        return layers.activate(self, "sum", x + y, "relu")


class ResNet(nn.Module):
    """CIFAR ResNet of depth `6 * blocks_per_stage + 2`."""

    blocks_per_stage: int
    num_classes: int
    axis_name: str | None = None
    dtype: Any = None
    dropout_rate: float = 0.0
    batch_norm_momentum: float = 0.9
    kernel_std = staticmethod(layers.kernel_std)

    @staticmethod
    def uniform_bound(path: tuple[str, ...]) -> float | None:
        """Return the bound b of a leaf with first values uniform in [-b, b]; None for all others.

        The last layer of the reference has PyTorch's default for linear layers: for weights and
        biases b is the square root of 1 / fan-in.
        """
        return _WIDTHS[-1] ** -0.5 if path[-2] == "fc" else None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        norm = batch_norm(train, self.axis_name, self.dtype)
        x = layers.Conv(_WIDTHS[0], 3, dtype=self.dtype, name="conv1")(x)
        x = norm(name="bn1", activation="relu")(x)
        for stage, features in enumerate(_WIDTHS):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}.{block}"
                x = BasicBlock(features, stride, norm, self.dtype, name=name)(x)
        x = quantize.result(self, "mean", jnp.mean(x, axis=(1, 2)))
        x = layers.dropout(x, self.dropout_rate, dropout_keys)
        return layers.Dense(self.num_classes, dtype=self.dtype, name="fc")(x)
