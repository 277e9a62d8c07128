"""First values of a network's parameters: drawn here by NumPy, or by the module itself.

Networks of this project say with `kernel_std` how their kernels are drawn. Every leaf depends only
on the seed and its path, so the values are the same on every platform and under every version of
JAX. A module without `kernel_std` is left to its own initialisers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import quantize
from kd_jax.runtime.errors import UserError


def has_own_initializers(module: nn.Module) -> bool:
    """Tell whether the first values of a module are those of its own initialisers.

    That is the case for all modules without a `kernel_std`.
    """
    return not hasattr(module, "kernel_std")


def run_initializers(
    init: Callable[[jax.Array, jax.Array], Any], seed: int, image_shape: tuple[int, int, int]
) -> Any:
    """Return the variables `init(key, images)` that a module draws by itself, in host memory."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(init)(jax.random.key(seed), images)
    return jax.tree.map(np.array, variables)  # writable copies, as those drawn by `first_value`


def first_value(
    arch: str, module: Any, path: tuple[str, ...], shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """Return the first value of a leaf, for a module with a `kernel_std`.

    Args:
      arch: name of the network, for the error.
      module: with `kernel_std`, and optionally `uniform_bound`.
      path: of the leaf, collection first.
      shape: of the leaf.
      seed: of the run; the generator is seeded with it and with the path.

    Returns:
      float32 array of this shape.

    Raises:
      UserError: the leaf is no kernel, scale, bias or statistic.
    """
    if quantize.is_range(path):
        return np.zeros(shape, np.float32)
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
