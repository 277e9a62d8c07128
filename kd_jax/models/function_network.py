"""A frozen network that is any JAX function: what a teacher from outside the zoo is in the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class FunctionNetwork:
    """A function from variables and images to logits; for teachers only.

    Attributes:
      arch: its name.
      apply: `apply(variables, images) -> logits [n, outputs]`, pure and in eval mode; `images` are
        what `preprocessing` returns.
      preprocessing: of the pixels.
      outputs: which outputs are the classes of the data set, in the order of its labels; None: all,
        as they are.
    """

    arch: str
    apply: Callable[[Any, jax.Array], jax.Array]
    preprocessing: Preprocessing
    outputs: tuple[int, ...] | None = None

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the pixels in [0, 1], one value for each channel."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the pixels in [0, 1], one value for each channel."""
        return self.preprocessing.std

    def logits(self, variables: Any, pixels: jax.Array) -> jax.Array:
        """Return float32 logits `[n, classes]` of pixels `[n, H, W, C]` in [0, 1]."""
        logits = jnp.asarray(self.apply(variables, self.preprocessing(pixels)), jnp.float32)
        return logits if self.outputs is None else logits[:, jnp.asarray(self.outputs)]
