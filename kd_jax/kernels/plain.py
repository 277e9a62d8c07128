"""The plain convolution, and the gradients of compiled passes as those of their plain forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax import lax

from kd_jax.kernels.windows import Padding

_Function = TypeVar("_Function", bound=Callable[..., Any])
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int = 1
) -> jax.Array:
    """Return the convolution that XLA computes.

    Args:
      x: `[batch, height, width, channels_in]`.
      kernel: `[kh, kw, channels_in / groups, channels_out]`.
      stride: in both directions.
      padding: zeros above and below, left and right.
      groups: number of groups of channels.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def with_plain_gradient(
    plain: Callable[..., Any], nondiff_argnums: tuple[int, ...] = ()
) -> Callable[[_Function], _Function]:
    """Return a decorator that gives a compiled function the gradient of its plain form.

    Compiled passes for frozen networks have no gradient of their own. With that of the plain form,
    differentiating a frozen network gives the usual result.

    Args:
      plain: computes the same function of the same arguments, and is differentiable.
      nondiff_argnums: the last arguments, those that are not arrays (see `jax.custom_vjp`).
    """

    def decorate(compiled: _Function) -> _Function:
        differentiable = jax.custom_vjp(compiled, nondiff_argnums=nondiff_argnums)

        def forward(*arguments: Any) -> tuple[Any, tuple[Any, ...]]:
            arrays = arguments[: len(arguments) - len(nondiff_argnums)]
            return compiled(*arguments), arrays

        def backward(*arguments: Any) -> Any:
            *options, arrays, grad = arguments
            return jax.vjp(lambda *arrays: plain(*arrays, *options), *arrays)[1](grad)

        differentiable.defvjp(forward, backward)
        return cast(_Function, differentiable)

    return decorate
