"""Fake quantisation: a network in training computes with the numbers of its int8 file.

Inside `active` the layers of this project round their weights and results to the values that int8
can hold, in float32. Rounding has no useful gradient, so a rounded number has the gradient of the
number itself ("straight through"), and a clipped one has none.

- Weights: -127 to 127 times a step that each output channel has of its own, the largest absolute
  weight / 127. A file holds weights that batch norm has been multiplied into, one factor for each
  output channel. That factor changes the step and not the integers, so the weights that are rounded
  here are those of the file, and nothing needs to be folded in training.
- Results: 256 values with one step, 0 among them, between a running minimum and maximum. These
  ranges are statistics of batches, and are kept among those (`batch_stats`, leaves `*_range`).
- Batch norm is in eval mode: what is folded are its running statistics, and with those of a batch a
  network would be trained that no file holds. So they stay as they are when rounding begins.

Source: Jacob et al. 2018, sections 2 and 3; Krishnamoorthi 2018, sections 2 and 3.2. The numbers
are those of the specification of TensorFlow Lite's int8.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.kernels import lowering

NAME = "fake_quantize"  # of the inner function in a traced program, where a file's writer finds it
MOMENTUM = 0.99  # weight of the old range, as in PyTorch's moving averages of ranges
_LARGEST_WEIGHT = 127
_STEPS = 255  # between the least and the largest result
_LEAST_WIDTH = 1e-6  # of a range, so that a step is not 0
_SUFFIX = "_range"
_COLLECTION = "batch_stats"


@dataclasses.dataclass(frozen=True)
class _Mode:
    """How layers are traced: whether ranges are updated, and over which axis of devices."""

    train: bool
    axis_name: str | None


_mode: contextvars.ContextVar[_Mode | None] = contextvars.ContextVar("quantize", default=None)


@contextlib.contextmanager
def active(train: bool = False, axis_name: str | None = None) -> Iterator[None]:
    """Context in which layers are traced with int8's numbers, and in the plain lowering.

    Args:
      train: whether ranges follow the batch.
      axis_name: of the devices whose images are one batch; None for one device.
    """
    token = _mode.set(_Mode(train, axis_name))
    try:
        with lowering.forced("plain"):  # compiled passes know nothing of rounding
            yield
    finally:
        _mode.reset(token)


def is_active() -> bool:
    """Tell whether layers are traced inside `active`."""
    return _mode.get() is not None


def weights(kernel: jax.Array) -> jax.Array:
    """Return a kernel `[..., out]` as an int8 file has it; inside `active` only."""
    if not is_active():
        return kernel
    largest = jnp.max(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))
    step = jnp.where(largest > 0, largest, 1.0) / _LARGEST_WEIGHT
    return _rounded(kernel, step, -_LARGEST_WEIGHT, _LARGEST_WEIGHT)


def result(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Return a result of a module as an int8 file has it; inside `active` only.

    In training the range moves towards that of the batch first; the first batch sets it.

    Args:
      module: bound; keeps the range.
      name: of the result, in this module.
      x: of any shape.
    """
    mode = _mode.get()
    if mode is None:
        return x
    running = module.variable(_COLLECTION, f"{name}{_SUFFIX}", jnp.zeros, (2,))
    if mode.train and not module.is_initializing():
        running.value = _moved(running.value, x, mode.axis_name)
    return within(x, running.value)


def within(x: jax.Array, ends: Any) -> jax.Array:
    """Return numbers as an int8 file has them whose range is known; inside `active` only.

    Args:
      x: of any shape.
      ends: `[2]`, the least and the largest number.
    """
    return fake_quantize(x, jnp.asarray(ends, jnp.float32)) if is_active() else x


@jax.jit
def fake_quantize(x: jax.Array, ends: jax.Array) -> jax.Array:
    """Return `x` rounded to one of the 256 values of a range, see `grid`."""
    return _rounded(x, *grid(ends))


def grid(ends: Any) -> tuple[Any, Any, Any]:
    """Return the values between two numbers that int8 has: step, least and largest multiple of it.

    The range is made to contain 0, which is one of the values: padding needs it.
    """
    low, high = jnp.minimum(ends[0], 0.0), jnp.maximum(ends[1], 0.0)
    step = jnp.maximum(high - low, _LEAST_WIDTH) / _STEPS
    below = jnp.round(-low / step)
    return step, -below, _STEPS - below


@jax.custom_vjp
def _rounded(x: jax.Array, step: Any, least: Any, most: Any) -> jax.Array:
    """Return the multiple of `step` nearest to `x`, at least `least` and at most `most` of them."""
    return jnp.clip(jnp.round(x / step), least, most) * step


def _rounded_forward(x: jax.Array, step: Any, least: Any, most: Any) -> tuple[jax.Array, Any]:
    multiple = jnp.round(x / step)
    is_inside = (multiple >= least) & (multiple <= most)
    return jnp.clip(multiple, least, most) * step, is_inside


def _rounded_backward(is_inside: Any, gradient: jax.Array) -> tuple[Any, None, None, None]:
    return jnp.where(is_inside, gradient, 0.0), None, None, None


_rounded.defvjp(_rounded_forward, _rounded_backward)


def _moved(running: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    """Return a range after one more batch, the same on all devices."""
    x = jax.lax.stop_gradient(x)
    low, high = jnp.min(x), jnp.max(x)
    if axis_name is not None:
        low, high = jax.lax.pmin(low, axis_name), jax.lax.pmax(high, axis_name)
    of_batch = jnp.stack([low, high]).astype(jnp.float32)
    moved = MOMENTUM * running + (1.0 - MOMENTUM) * of_batch
    return jnp.where(running[0] < running[1], moved, of_batch)


def joined(parts: jax.Array) -> jax.Array:
    """Return the range `[2]` of a batch from those of its parts, `[parts, 2]`.

    A range moves towards that of the batch, so the least of the low ends after the move is the low
    end that has moved towards the least; the same for the high ends.
    """
    return jnp.stack([jnp.min(parts[:, 0]), jnp.max(parts[:, 1])])


def joined_over(ranges: Mapping[Any, jax.Array], axis_name: str) -> dict[Any, jax.Array]:
    """Return `joined` of each range `[2]` over the devices of an axis, in one collective."""
    if not ranges:
        return {}
    ends = jnp.stack(list(ranges.values())) * jnp.array([-1.0, 1.0])
    lows, highs = jnp.moveaxis(jax.lax.pmax(ends, axis_name), -1, 0)
    return dict(zip(ranges, jnp.stack([-lows, highs], axis=-1), strict=True))


def is_range(path: tuple[str, ...]) -> bool:
    """Tell whether a leaf of variables, whose path begins with the collection, is a range."""
    return path[0] == _COLLECTION and path[-1].endswith(_SUFFIX)


def ranges(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the ranges among variables, by path."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    return {path: leaf for path, leaf in flat.items() if is_range(path)}


def have_ranges(variables: Mapping[str, Any]) -> bool:
    """Tell whether variables are of a network that has been trained with int8's numbers."""
    return any(low < high for low, high in map(np.asarray, ranges(variables).values()))


def without_ranges(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the same network in floating-point numbers."""
    flat = flax.traverse_util.flatten_dict(dict(variables), keep_empty_nodes=True)
    kept = {path: leaf for path, leaf in flat.items() if not is_range(path)}
    return flax.traverse_util.unflatten_dict(kept)


def with_ranges_of(variables: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables with the ranges that other variables have."""
    flat = flax.traverse_util.flatten_dict(dict(variables), keep_empty_nodes=True)
    return flax.traverse_util.unflatten_dict({**flat, **ranges(other)})
