"""Say what is to be computed first, where nothing but speed depends on it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.kernels import lowering


def after(first: Any, then: jax.Array) -> jax.Array:
    """Return `then`, which on CPU is not there before `first` is; NaN where `first` has a NaN.

    XLA runs what does not depend on one another in any order, on a pool of as many threads as there
    are devices, and a collective keeps its thread until every device is there. So where one
    device's student reached its first collective while its own teacher still waited for a thread,
    the two teachers ran one after the other beside an idle core, in some steps and not in others.
    `jax.lax.optimization_barrier` does not help: it orders the instructions, not the threads.

    Args:
      first: a tree of float arrays.
      then: float, of any shape.
    """
    if lowering.current() != "cpu":
        return then
    total = sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(first))
    return jnp.where(jnp.isnan(total), jnp.nan, then)
