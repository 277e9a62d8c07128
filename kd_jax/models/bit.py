"""BiT: ResNet v2 with group norm and weight-standardised convolutions, for images of any size.

No output depends on the other images of the batch. So there are no running statistics, and the only
collective of a step is that of the gradients.

Source: Kolesnikov et al. 2020, section 3.3. Submodules have the names of the authors' PyTorch code
(google-research/big_transfer); `weights.name_maps` has the names in their `.npz` files. The padding
of the pooling is zero, as in all code of the authors except big_vision's bit_paper, where it is
minus infinity: the first row and column differ there if all pixels of a window are negative. First
values are those of big_vision, but the normal distribution is not truncated.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.kernels import conv
from kd_jax.models import layers

# Number of units in each stage, by depth.
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_GROUPS = 32
_EXPANSION = 4  # ratio of the output channels of a unit to its inner ones
_HEAD = "head.conv"


def standardise(kernel: jax.Array) -> jax.Array:
    """Return a kernel `[kh, kw, in, out]` with mean 0 and variance 1 for every output channel."""
    kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
    return kernel / jnp.sqrt(jnp.mean(jnp.square(kernel), axis=(0, 1, 2)) + 1e-10)


class StandardisedConv(nn.Module):
    """2-D convolution with a kernel that is standardised, in float32, at each call."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        shape = (k, k, x.shape[-1], self.features)
        kernel = standardise(self.param("kernel", nn.initializers.lecun_normal(), shape))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return conv.conv2d(x, kernel, self.stride)


def _group_norm(dtype: Any, name: str) -> nn.GroupNorm:
    """Return a group norm with the epsilon of the reference and its two-pass variance."""
    return nn.GroupNorm(_GROUPS, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


class Unit(nn.Module):
    """Pre-activation bottleneck: norm and ReLU before each convolution, none after the sum."""

    width: int
    stride: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = _EXPANSION * self.width
        y = nn.relu(_group_norm(self.dtype, "gn1")(x))
        if self.stride != 1 or x.shape[-1] != features:
            x = StandardisedConv(features, 1, self.stride, self.dtype, name="downsample")(y)
        y = StandardisedConv(self.width, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(_group_norm(self.dtype, "gn2")(y))
        y = StandardisedConv(self.width, 3, self.stride, self.dtype, name="conv2")(y)
        y = nn.relu(_group_norm(self.dtype, "gn3")(y))
        return x + StandardisedConv(features, dtype=self.dtype, name="conv3")(y)


class BiT(nn.Module):
    """BiT-R`depth`x`width_factor`; `units` is the number of units in each of four stages."""

    units: tuple[int, ...]
    width_factor: float
    num_classes: int
    axis_name: str | None = None  # unused, because there is no batch norm
    dtype: Any = None
    dropout_rate: float = 0.0
    batch_norm_momentum: float = 0.9  # unused, as axis_name

    @staticmethod
    def kernel_std(path: tuple[str, ...], shape: tuple[int, ...]) -> float:
        """Return the standard deviation of a kernel's first values: LeCun's; 0 for the head.

        LeCun's is the root of 1 / fan-in. The forward pass does not depend on it, because kernels
        are standardised. But the ratio of an update to the weights does, so a learning rate is only
        valid together with it.
        """
        return 0.0 if _HEAD in path else math.prod(shape[:-1]) ** -0.5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        width = round(64 * self.width_factor)
        x = StandardisedConv(width, 7, 2, self.dtype, name="root.conv")(x)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        for stage, units in enumerate(self.units):
            for unit in range(units):
                stride = 2 if stage > 0 and unit == 0 else 1
                name = f"body.block{stage + 1}.unit{unit + 1:02d}"
                x = Unit(width * 2**stage, stride, self.dtype, name=name)(x)
        x = nn.relu(_group_norm(self.dtype, "head.gn")(x))
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        x = layers.dropout(x, self.dropout_rate, dropout_keys)
        return layers.Conv(self.num_classes, use_bias=True, dtype=self.dtype, name=_HEAD)(x)[
            :, 0, 0
        ]


def of_depth(depth: int, **fields: Any) -> BiT:
    """Return the network of a depth in `UNITS`."""
    return BiT(UNITS[depth], **fields)
