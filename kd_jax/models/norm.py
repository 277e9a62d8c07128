"""Batch norm with the activation after it, and the running averages that training keeps.

Parameters, statistics and mathematics are Flax's. On CPU training uses compiled passes, see
`kernels.batch_norm`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from kd_jax.kernels import batch_norm as compiled
from kd_jax.kernels import forms, lowering
from kd_jax.kernels.batch_norm import EPSILON
from kd_jax.models import layers, quantize

Norms = dict[str, nn.BatchNorm]  # by path, joined by `/`
_kept: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("kept", default=frozenset())


@contextlib.contextmanager
def keeping(paths: frozenset[str]) -> Iterator[None]:
    """Context in which the norms at these paths, joined by `/`, are traced in eval mode.

    Their running statistics are used and do not change.
    """
    token = _kept.set(paths)
    try:
        yield
    finally:
        _kept.reset(token)


class BatchNorm(nn.BatchNorm):
    """Flax's batch norm, followed by an activation: `none`, `relu`, `relu6` or `hard_swish`.

    Make it with `batch_norm` only, because the compiled form supports none of Flax's other options.
    """

    train: bool = False
    activation: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Return the activation of the normalised `x` `[..., channels]`."""
        is_kept = quantize.is_active() or "/".join(self.path) in _kept.get()
        eval_mode = is_kept or not self.train
        if eval_mode or self.is_initializing() or not self._takes_compiled(x):
            y = super().__call__(x, use_running_average=eval_mode)
            return layers.activate(self, "output", y, self.activation)
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        y, mean, variance = compiled.normalise(
            x, scale, bias, self.axis_name, self.epsilon, self.activation
        )
        for name, value in (("mean", mean), ("var", variance)):
            self.put_variable("batch_stats", name, value)
        return y

    def _takes_compiled(self, x: jax.Array) -> bool:
        if lowering.current() != "cpu":
            return False
        possible = self.dtype in (None, jnp.float32) and compiled.suits(x)
        return forms.takes_compiled(forms.BATCH_NORM, possible)


def batch_norm(
    train: bool, axis_name: str | None, dtype: Any, *, epsilon: float = EPSILON
) -> functools.partial[BatchNorm]:
    """Return the batch norm of one network; each use adds a name and an activation.

    In training the module puts the statistics of the whole batch, across `axis_name` and in
    float32, into `batch_stats` (momentum 0). `running_average` makes the running ones of them.

    Args:
      train: whether to normalise by the statistics of the batch.
      axis_name: the pmap axis of the devices whose images are normalised together, or None.
      dtype: of the computation; None for float32.
      epsilon: added to the variance.
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

    `momentum` is the weight of the old average (Flax's convention for batch norm: one minus
    PyTorch's). It is reached gradually: the new value of step t has at least the weight
    9 / (10 + t). A plain average of statistics starts from mean 0 and variance 1 and forgets these
    so slowly that torchvision's MobileNetV3 (momentum 0.99, 34 norms in a row) is at chance in eval
    mode for its first hundreds of steps. From step 890 on, at 0.99, both averages are the same.

    The variance is the biased one. PyTorch keeps the unbiased one; the ratio is n / (n - 1), where
    n is the number of pixels of the global batch.

    Args:
      running, new: trees of the same structure.
      step: number of updates made before this one. None if `running` comes from earlier training
        and is not to be forgotten: then `momentum` is used from the start.
      momentum: weight of the old average, in [0, 1).
    """
    old_weight = gradual(momentum, step)
    return jax.tree.map(
        lambda old, value: old_weight * old + (1.0 - old_weight) * value, running, new
    )


def gradual(momentum: float, step: jax.Array | int | None) -> jax.Array:
    """Return the weight of the old average at a step, see `running_average`."""
    weight = jnp.asarray(momentum, jnp.float32)
    if step is None:
        return weight
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(weight, (1.0 + step) / (10.0 + step))


@flax.struct.dataclass
class Statistics:
    """The `batch_stats` that a network has after a batch in train mode; each leaf is in one part.

    Attributes:
      of_batch: of the norms made by `batch_norm`: statistics of this batch, still to be averaged.
      running: of everything else, ranges of `quantize` among them: running averages that the module
        has updated itself.
    """

    of_batch: Any
    running: Any


def record_norms(call: Callable[[], Any]) -> tuple[Any, Norms]:
    """Return the result of a call, and the batch norms that were called in it."""
    norms: Norms = {}

    def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm):
            norms["/".join(context.module.path)] = context.module
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        return call(), norms


def split_statistics(batch_stats: Mapping[str, Any], norms: Norms) -> Statistics:
    """Divide the `batch_stats` that a module returns in train mode, see `Statistics`."""
    kd_jax_norms = {path for path, norm in norms.items() if isinstance(norm, BatchNorm)}
    of_batch: dict[Any, Any] = {}
    running: dict[Any, Any] = {}
    for path, leaf in flax.traverse_util.flatten_dict(dict(batch_stats)).items():
        is_range = quantize.is_range(("batch_stats", *path))
        part = of_batch if "/".join(path[:-1]) in kd_jax_norms and not is_range else running
        part[path] = leaf
    return Statistics(*map(flax.traverse_util.unflatten_dict, (of_batch, running)))
