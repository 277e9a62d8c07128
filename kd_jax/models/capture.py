"""The outputs of a network's modules by path, caught while the network is traced.

A path is that of a Linen module, `layer3.8/conv2`. Flax's interceptors see every call of a module,
so no network has to know that it is looked at. The output of a batch norm of kd_jax is what leaves
it, after the activation that belongs to it; of a module that is called twice it is the last.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace

from kd_jax.kernels import chunks, lowering
from kd_jax.models.function_network import FunctionNetwork
from kd_jax.models.network import Network, Variables
from kd_jax.runtime.errors import UserError

Outputs = dict[str, jax.Array]
AnyNetwork = Network | FunctionNetwork
_MOST_NAMED = 8  # paths in an error
_TRACED = 2  # images that a network is traced with


def outputs(call: Callable[[], Any]) -> tuple[Any, Outputs]:
    """Return the result of a call, and what each module returned in it, by path.

    Without modules that are called inside a transformation, such as `nn.remat` or `nn.scan`: their
    outputs cannot leave it.
    """
    found: Outputs = {}
    outside = current_trace()

    def catch(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = method(*args, **kwargs)
        is_output = context.method_name == "__call__" and isinstance(result, jax.Array)
        if is_output and current_trace() == outside:
            found["/".join(context.module.path)] = result
        return result

    with nn.intercept_methods(catch):
        return call(), found


def logits_and_outputs(
    network: AnyNetwork, variables: Variables, pixels: jax.Array, paths: Collection[str]
) -> tuple[jax.Array, Outputs]:
    """Return a frozen network's logits, and the outputs of the modules at `paths`.

    On CPU a compiled pass may compute a whole block, whose parts are then never called. Where one
    of them is asked for, the network is traced with plain convolutions.

    Args:
      network: of modules that are all there, see `shapes`.
      variables: of the network.
      pixels: float32 `[n, H, W, C]` in [0, 1].
      paths: of its modules.
    """

    def forward(pixels: jax.Array) -> tuple[jax.Array, Outputs]:
        with chunks.whole():  # what is caught within a chunk could not leave it
            logits, found = outputs(lambda: network.logits(variables, pixels))
            if not found.keys() >= set(paths):
                with lowering.forced("plain"):
                    logits, found = outputs(lambda: network.logits(variables, pixels))
        return logits, {path: found[path] for path in paths}

    return chunks.in_chunks(forward, pixels) if isinstance(network, Network) else forward(pixels)


def shapes(
    network: AnyNetwork, variables: Any, image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each module makes of one image, by path. Computes nothing.

    Args:
      network: to be traced, in eval mode and by plain convolutions: on every machine the same.
      variables: of the network, or their shapes and dtypes.
      image_shape: `(H, W, C)`.
    """
    pixels = jax.ShapeDtypeStruct((_TRACED, *image_shape), jnp.float32)

    def traced(variables: Any, pixels: jax.Array) -> Outputs:
        return outputs(lambda: network.logits(variables, pixels))[1]

    with lowering.forced("plain"):
        found = jax.eval_shape(traced, variables, pixels)
    return {
        path: out.shape[1:]
        for path, out in found.items()
        if path and out.shape[:1] == (_TRACED,) and jnp.issubdtype(out.dtype, jnp.floating)
    }


def resolve(path: str, known: Mapping[str, Any], arch: str) -> str:
    """Return the path of the module that a user's path means.

    `.` and `/` are the same, as in PyTorch's names. A sequence is its last module: `layer3` is
    `layer3.8` where there are `layer3.0` to `layer3.8`.

    Args:
      path: of the user.
      known: modules by path.
      arch: of the network, for the error.

    Raises:
      UserError: there is no such module.
    """
    plain = {each.replace("/", "."): each for each in known}
    wanted = path.replace("/", ".")
    if wanted in plain:
        return plain[wanted]
    numbered = [
        each for each in plain
        if each.startswith(f"{wanted}.") and each.removeprefix(f"{wanted}.").isdecimal()
    ]  # fmt: skip
    if numbered:
        return plain[max(numbered, key=lambda each: int(each.rpartition(".")[2]))]
    if not known:
        raise UserError(
            f"{arch} has no modules that go by a path, as {path!r} would be one: expected a "
            "network of the zoo or a Linen module"
        )
    near = difflib.get_close_matches(wanted, plain, _MOST_NAMED, cutoff=0.3)
    listed = ", ".join(near or list(plain)[:_MOST_NAMED])
    raise UserError(
        f"{arch} has no module {path!r}: expected a path such as {listed} ({len(plain)} in all)"
    )
