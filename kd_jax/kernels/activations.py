"""Hard sigmoid and hard swish, and the table of activations that may follow a batch norm."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Return `relu6(x + 3) / 6`."""
    return jnp.clip(x + 3.0, 0.0, 6.0) * (1.0 / 6.0)


def hard_swish(x: jax.Array) -> jax.Array:
    """Return `x * hard_sigmoid(x)`."""
    return x * hard_sigmoid(x)


# In the order of `Activation` in `native/batch_norm.h`.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "hard_swish": hard_swish,
}
