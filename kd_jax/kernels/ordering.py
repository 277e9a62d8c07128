"""Order of execution on CPU, where it matters for speed only."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.kernels import lowering


def after(first: Any, then: jax.Array) -> jax.Array:
    """Add a data dependency so that on CPU `then` is computed after `first`.

    XLA runs independent computations in any order, on a pool with one thread for each device, and a
    collective occupies its thread until all devices have reached it. Without the dependency the
    student of one device could reach its first collective while the teacher of that device waited
    for a thread. Then the teachers of two devices ran one after the other and a core was idle, in
    some steps. `jax.lax.optimization_barrier` does not help: it orders instructions, not threads.

    Args:
      first: a tree of float arrays.
      then: a float array of any shape.

    Returns:
      `then`; NaN everywhere if `first` contains a NaN (on CPU).
    """
    if lowering.current() != "cpu":
        return then
    total = sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(first))
    return jnp.where(jnp.isnan(total), jnp.nan, then)
