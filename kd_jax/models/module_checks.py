"""Checks of a network's module: refuse what training could not do correctly.

The modules of this project leave their first values and the running averages of their norms to
`Network`. Other modules need not: there Flax and the module do both, as usual. Whatever would give
wrong results without any message raises `UserError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp

from kd_jax.models.layers import Conv, Dense
from kd_jax.models.norm import BatchNorm, Norms
from kd_jax.runtime.errors import UserError

_COLLECTIONS = {"params", "batch_stats"}


def check(arch: str, module: nn.Module, variables: Mapping[str, Any], norms: Norms) -> None:
    """Raise `UserError` if training this module would give wrong results without any message.

    Checks its collections, the dtypes of its leaves, and the momentum of its norms.

    Args:
      arch: name of the network, for the error.
      module: unbound.
      variables: shapes and dtypes of what `module.init` returns.
      norms: the batch norms that `module.init` calls, by path.
    """
    if unknown := sorted(set(variables) - _COLLECTIONS):
        raise UserError(
            f"{arch} keeps variables in {', '.join(unknown)}, which training would not carry on: "
            "expected params, and batch_stats for what changes by itself"
        )
    for path, leaf in flax.traverse_util.flatten_dict(dict(variables), sep="/").items():
        if leaf.dtype != jnp.float32:
            raise UserError(
                f"{arch} has {path} in {leaf.dtype}: expected parameters and statistics in "
                "float32, whatever the module computes in"
            )
    ours = {path: norm for path, norm in norms.items() if isinstance(norm, BatchNorm)}
    for path, norm in ours.items():
        if norm.momentum:
            raise UserError(
                f"{arch} makes its norm {path} with momentum={norm.momentum}, and its statistics "
                "would be averaged twice: expected kd_jax.models.norm.batch_norm to make it, and "
                "the momentum as the module's batch_norm_momentum"
            )
    if ours and not hasattr(module, "batch_norm_momentum"):
        raise UserError(
            f"{arch} has norms of kd_jax ({next(iter(ours))}) and no batch_norm_momentum: expected "
            "one, Flax's, which is one minus PyTorch's"
        )


def check_norms(
    arch: str, module: nn.Module, norms: Norms, devices: int, kept: Collection[str]
) -> None:
    """Raise `UserError` if a norm cannot do what the config of the run says.

    That is: on several devices a norm would use the statistics of one device although the norms are
    to be synchronised; or a norm that is to be frozen is not one of kd_jax, and its module would
    update its statistics nevertheless.

    Args:
      arch: name of the network, for the error.
      module: with its `axis_name` set, if norms are to be synchronised over that axis.
      norms: its batch norms by path.
      devices: number of devices that a batch is divided over.
      kept: paths of norms that stay in eval mode, see `norm.keeping`.
    """
    axis = getattr(module, "axis_name", None)
    local = [path for path, norm in norms.items() if norm.axis_name != axis]
    if axis is not None and devices > 1 and local:
        raise UserError(
            f"{arch} does not pass its axis_name to the norm {local[0]}, so each of the {devices} "
            "devices would keep statistics of its own: expected axis_name=self.axis_name there, "
            "or --config.num_devices=1, or --config.batch_norm.sync=False"
        )
    foreign = [path for path in kept if not isinstance(norms.get(path), BatchNorm)]
    if foreign:
        raise UserError(
            f"config.student.freeze freezes the norm {min(foreign)} of {arch}, which is not of "
            "kd_jax and would go on with the statistics of each batch: expected "
            "kd_jax.models.norm.batch_norm to make it, or a pattern that leaves its parameters free"
        )


def check_quantized(arch: str, init: Callable[[], Mapping[str, Any]]) -> None:
    """Raise `UserError` if a layer with parameters is not one whose numbers are int8's.

    Args:
      arch: name of the network, for the error.
      init: calls every module, and returns the shapes of their variables.
    """
    called: dict[tuple[str, ...], nn.Module] = {}

    def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        called[context.module.path] = context.module
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = init()
    for path in flax.traverse_util.flatten_dict(dict(variables["params"])):
        layer = called.get(path[:-1])
        if not isinstance(layer, Conv | Dense | BatchNorm):
            raise UserError(
                f"config.student.quantize is int8, and {arch} has the layer "
                f"{'/'.join(path[:-1])}, a {type(layer).__name__}, which computes in "
                "floating-point numbers: expected none, or a network of Conv, Dense and batch_norm "
                "of kd_jax.models (docs/adding_a_model.md)"
            )
