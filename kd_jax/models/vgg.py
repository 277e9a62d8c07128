"""VGG with batch norm for small images: five stages of 3x3 convolutions, each ended by pooling.

Source: Simonyan and Zisserman 2015, as in chenyaofo/pytorch-cifar-models: convolutions have a bias
although batch norm follows, and the two hidden layers of the classifier have 512 units. Submodules
have the names of that PyTorch model.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models import layers
from kd_jax.models.norm import batch_norm

# Number of convolutions in each stage, by depth.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = 512


def _halve(x: jax.Array) -> jax.Array:
    """Return the maximum of each 2x2 square.

    Written as a reduction, because XLA's `reduce_window` is slow on CPU.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.max(x, axis=(2, 4))


class VGG(nn.Module):
    """VGG of a depth in `STAGES`."""

    depth: int
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
        number = 0  # position in PyTorch's list of layers: convolution, norm, activation, pooling
        for width, convolutions in zip(WIDTHS, STAGES[self.depth], strict=True):
            for _ in range(convolutions):
                name = f"features.{number}"
                x = layers.Conv(width, 3, use_bias=True, dtype=self.dtype, name=name)(x)
                x = norm(name=f"features.{number + 1}", activation="relu")(x)
                number += 3
            x = _halve(x)
            number += 1
        # PyTorch flattens channels first. At 32 pixels one pixel is left, so there it is the same.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        # Only a placeholder, `Network.init` sets the values: Flax's default initialiser fails where
        # no pixel is left.
        zeros = nn.initializers.zeros
        for layer in (0, 3):
            x = layers.Dense(
                HIDDEN,
                kernel_init=zeros,
                dtype=self.dtype,
                activation="relu",
                name=f"classifier.{layer}",
            )(x)
            keys = None
            if dropout_keys is not None:
                keys = jax.vmap(lambda key, n=layer: jax.random.fold_in(key, n))(dropout_keys)
            x = layers.dropout(x, self.dropout_rate, keys)
        return layers.Dense(self.num_classes, dtype=self.dtype, name="classifier.6")(x)
