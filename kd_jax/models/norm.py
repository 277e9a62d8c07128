"""Batch norm with the activation after it, and the running averages that training keeps.

Parameters, statistics and mathematics are Flax's. On CPU training takes passes of its own: autodiff
would keep the centred maps for the gradient, another pass to memory and back, and XLA makes a pass
of every sum.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.kernels import batch_norm as compiled
from kd_jax.kernels import forms, lowering
from kd_jax.kernels.activations import ACTIVATIONS
from kd_jax.kernels.batch_norm import EPSILON

_kept: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("kept", default=frozenset())


@contextlib.contextmanager
def keeping(paths: frozenset[str]) -> Iterator[None]:
    """Trace the norms at these paths, joined by `/`, in eval mode: their statistics are kept."""
    token = _kept.set(paths)
    try:
        yield
    finally:
        _kept.reset(token)


class BatchNorm(nn.BatchNorm):
    """Flax's, followed by an activation: `none`, `relu`, `relu6` or `hard_swish`.

    Made by `batch_norm` alone: the compiled form knows none of Flax's other options.
    """

    train: bool = False
    activation: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Return the activation of the normalised `x` `[..., channels]`."""
        running = not self.train or "/".join(self.path) in _kept.get()
        if running or self.is_initializing() or not self._compiled(x):
            y = super().__call__(x, use_running_average=running)
            return ACTIVATIONS[self.activation](y)
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        y, mean, variance = compiled.normalise(
            x, scale, bias, self.axis_name, self.epsilon, self.activation
        )
        for name, value in (("mean", mean), ("var", variance)):
            self.put_variable("batch_stats", name, value)
        return y

    def _compiled(self, x: jax.Array) -> bool:
        if lowering.current() != "cpu":
            return False
        can = self.dtype in (None, jnp.float32) and compiled.suits(x)
        return forms.compiles(forms.BATCH_NORM, can)


def batch_norm(
    train: bool, axis_name: str | None, dtype: Any, *, epsilon: float = EPSILON
) -> functools.partial[BatchNorm]:
    """Return the batch norm of one network, still to be named at each use.

    In training the statistics are those of the whole batch across `axis_name`, in float32, and
    they leave the module as they are (momentum 0): `running_average` keeps the running ones.
    """
    return functools.partial(
        BatchNorm,
        train=train,
        axis_name=axis_name,
        momentum=0.0,
        epsilon=epsilon,
        dtype=dtype,
    )


def running_average(running: Any, new: Any, step: jax.Array | int | None, momentum: float) -> Any:
    """Return the running average, of batch statistics or of weights, after one more step.

    `momentum` is the share of the old (for batch norm Flax's, one minus PyTorch's), but it is
    reached gradually: step t counts with at least 9 / (10 + t). A plain average of statistics
    starts from mean 0 and variance 1 and forgets them so slowly that torchvision's MobileNetV3
    (momentum 0.99, 34 norms in a row) answers at chance in eval mode for its first hundreds of
    steps. From step 890 on, at 0.99, the two are the same.

    The variance is the biased one, where PyTorch keeps the unbiased: they differ by n / (n - 1),
    n being the pixels of the global batch.

    Args:
      running, new: trees of the same structure.
      step: number of updates made before this one; None where `running` had been learnt before
        them: then it is not to be forgotten, and `momentum` holds from the start.
      momentum: the share of the old, in [0, 1).
    """
    old_share = jnp.asarray(momentum, jnp.float32)
    if step is not None:
        step = jnp.asarray(step, jnp.float32)
        old_share = jnp.minimum(momentum, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda old, value: old_share * old + (1.0 - old_share) * value, running, new
    )
