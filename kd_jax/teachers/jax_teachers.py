"""Teachers in JAX from outside the zoo: a function, a Linen module, an NNX module."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from kd_jax.models import call_signature
from kd_jax.runtime import source_digest
from kd_jax.runtime.errors import UserError
from kd_jax.teachers.teacher import ForeignNetwork

Apply = Callable[[Any, jax.Array], jax.Array]


def of_function(apply: Apply, variables: Any, name: str, code: str, **facts: Any) -> ForeignNetwork:
    """Return a JAX function as a teacher.

    Args:
      apply: `apply(variables, images) -> logits [n, outputs]`, pure and in eval mode; `images` are
        normalised, float32 `[n, H, W, C]`.
      variables: a tree of arrays.
      name: for messages and certificates.
      code: digest of the function's code.
      facts: further fields of `ForeignNetwork`.

    Raises:
      UserError: a variable is not finite.
    """
    digest = hashlib.sha256(code.encode())
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        key = jax.tree_util.keystr(path)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"the teacher {name} has values in {key} that are not finite")
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        leaves.append(array)
    host = jax.tree.unflatten(jax.tree.structure(variables), leaves)
    return ForeignNetwork(
        name, "a Python object", digest.hexdigest(), apply=apply, variables=host, **facts
    )


def of_object(network: Any, variables: Any, name: str, **facts: Any) -> ForeignNetwork:
    """Return a Linen module, an NNX module or a function as a teacher.

    Args:
      network: the object.
      variables: of a Linen module or a function; an NNX module has its own.
      name: for messages and certificates.
      facts: further fields of `ForeignNetwork`.

    Raises:
      UserError: it is none of these, or its variables are missing.
    """
    if isinstance(network, nnx.Module):
        if variables is not None:
            raise UserError(f"the teacher {name} is an NNX module: expected no variables beside it")
        return _of_nnx(network, name, **facts)
    if not isinstance(network, nn.Module) and not callable(network):
        raise UserError(
            f"the teacher {name} is a {type(network).__name__}: expected a path, a text such as "
            "torch:package.module:factory, a module of PyTorch, Keras, Linen or NNX, or a function "
            "f(variables, images)"
        )
    if variables is None:
        raise UserError(f"the teacher {name} has no variables: give them as kd_jax.teacher(f, v)")
    if isinstance(network, nn.Module):
        apply = _apply_linen(network, name)
        code = source_digest.of_module(network)
        return of_function(apply, variables, name, code, **facts)
    return of_function(network, variables, name, source_digest.of_function(network), **facts)


def _apply_linen(module: nn.Module, name: str) -> Apply:
    """Return the call of a Linen module in eval mode."""
    signature = call_signature.read(name, module)
    mode: dict[str, Any] = signature.mode(False)
    if signature.is_field:
        module, mode = module.clone(**mode), {}

    def apply(variables: Any, images: jax.Array) -> Any:
        return module.apply(variables, images, **mode)

    return apply


def _of_nnx(module: nnx.Module, name: str, **facts: Any) -> ForeignNetwork:
    module = nnx.clone(module)
    module.eval()
    graph, *states = nnx.split(module, nnx.RngState, ...)
    random, state = states  # eval mode draws nothing
    pure = nnx.to_pure_dict(state)

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        merged = nnx.clone(state)
        nnx.replace_by_pure_dict(merged, variables)
        return nnx.merge(graph, random, merged)(images)

    return of_function(apply, pure, name, source_digest.of_module(module), **facts)
