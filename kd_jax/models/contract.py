"""What a network's module must keep to, and what is done with the norms that it brings along.

The families of this project leave their first values and the running averages of their norms to
`Network`. A module of the user's own need not: whatever does not come from here is left to Flax and
to the module, and what would be wrong without a word is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models.norm import BatchNorm
from kd_jax.runtime.errors import UserError

Norms = dict[str, nn.BatchNorm]
_COLLECTIONS = {"params", "batch_stats"}


@flax.struct.dataclass
class Statistics:
    """What the norms of a network have to say after a batch; together they have every leaf.

    Attributes:
      of_batch: of `norm.batch_norm`: this batch's own, to be averaged.
      running: of everything else: averaged already, by the module itself, and taken as it is.
    """

    of_batch: Any
    running: Any


def watched(call: Callable[[], Any]) -> tuple[Any, Norms]:
    """Return what a call returns, and the batch norms that it went through, by path."""
    norms: Norms = {}

    def note(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm):
            norms["/".join(context.module.path)] = context.module
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        return call(), norms


def split(batch_stats: Mapping[str, Any], norms: Norms) -> Statistics:
    """Return the statistics that left a module in train mode, by who averages them."""
    ours = {path for path, norm in norms.items() if isinstance(norm, BatchNorm)}
    parts: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
    for path, leaf in flax.traverse_util.flatten_dict(dict(batch_stats)).items():
        parts["/".join(path[:-1]) not in ours][path] = leaf
    return Statistics(*map(flax.traverse_util.unflatten_dict, parts))


def draws_its_own(module: nn.Module) -> bool:
    """Tell whether a module's first values are those of its own initialisers.

    All but those with a `kernel_std`, which says how they are drawn here.
    """
    return not hasattr(module, "kernel_std")


def check(arch: str, module: nn.Module, variables: Mapping[str, Any], norms: Norms) -> None:
    """Raise `UserError` if a module does what would be wrong without a word.

    Args:
      arch: its name.
      module: not bound.
      variables: shapes and dtypes of what its `init` returns.
      norms: that `init` went through.
    """
    if more := sorted(set(variables) - _COLLECTIONS):
        raise UserError(
            f"{arch} keeps variables in {', '.join(more)}, which training would not carry on: "
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
    """Raise `UserError` if a norm cannot be what the run asks for.

    Because it would see one device's part of the batch, and nobody asked so; or it is to stay as it
    is, and its module goes on with it.

    Args:
      arch: its name.
      module: with its `axis_name` set, where norms are to be synchronised over it.
      norms: that it has.
      devices: that a batch is spread over.
      kept: paths of norms that are to stay in eval mode, see `norm.keeping`.
    """
    axis = getattr(module, "axis_name", None)
    alone = [path for path, norm in norms.items() if norm.axis_name != axis]
    if axis is not None and devices > 1 and alone:
        raise UserError(
            f"{arch} does not pass its axis_name to the norm {alone[0]}, so each of the {devices} "
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


def first_value(
    arch: str, module: Any, path: tuple[str, ...], shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """Return a leaf's first value, from (seed, its path) alone, for a module with a `kernel_std`.

    Raises:
      UserError: it is neither kernel, scale, bias nor statistic.
    """
    rng = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
    bound = getattr(module, "uniform_bound", lambda _: None)(path)
    if bound is not None:
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    if path[-1] in ("scale", "var"):
        return np.ones(shape, np.float32)
    if path[-1] in ("bias", "mean"):
        return np.zeros(shape, np.float32)
    if path[-1] != "kernel":
        raise UserError(
            f"{arch} leaves its first values to its kernel_std, and those are of kernels, "
            f"scales and biases, but has a parameter {'/'.join(path[1:])}: expected no kernel_std, "
            "so that the module draws them all itself"
        )
    std = module.kernel_std(path, shape)
    return (std * rng.standard_normal(shape)).astype(np.float32)


def init(module: nn.Module, seed: int, image_shape: tuple[int, int, int]) -> Any:
    """Return the variables that a module draws by itself from a seed, in host memory."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(seed), images)
    return jax.tree.map(np.array, variables)  # copies, which may be written to as those drawn here
