"""The function that is in every exported file: uint8 images to logits or probabilities."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import models
from kd_jax.distillation import augment
from kd_jax.kernels import lowering
from kd_jax.runtime.errors import UserError
from kd_jax.training.local_predictor import LocalPredictor

LOGITS, PROBABILITIES = "logits", "probabilities"
OUTPUTS = (LOGITS, PROBABILITIES)
_BATCH = 250  # images at a time, of a split


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Context in which JAX computes on the CPU, where float32 is float32.

    On accelerators convolutions of float32 are rounded to fewer digits than a file may differ by.

    Raises:
      UserError: JAX is told to leave the CPU out.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} leaves out the CPU, on which an "
            "exported file is verified: set nothing, or a list that ends with ,cpu"
        ) from None
    with jax.default_device(cpu):
        yield


def make(network: models.Network, variables: Any, outputs: str) -> Callable[[Any], jax.Array]:
    """Return the function of a network in eval mode, its variables and normalisation inside.

    It is traced in the plain lowering: a file has no compiled passes of this machine in it.

    Args:
      network: computed in float32.
      variables: of the network, in host memory.
      outputs: `logits` or `probabilities`.

    Returns:
      a function of uint8 `[n, H, W, 3]`, with float32 `[n, classes]`.
    """

    def apply(images: jax.Array) -> jax.Array:
        with lowering.forced("plain"):
            logits = network.logits(variables, augment.to_pixels(images))
        return jax.nn.softmax(logits) if outputs == PROBABILITIES else logits

    return apply


def student_logits(network: models.Network, variables: Any, images: np.ndarray) -> np.ndarray:
    """Return the logits of the network itself, float32 `[N, classes]`, as `evaluate` has them.

    In the lowering of this machine: a file is compared with what the run was measured by.

    Args:
      network: computed in float32.
      variables: of the network.
      images: uint8 `[N, H, W, 3]`.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    return LocalPredictor(network.logits, variables, device=cpu).logits(images)


def in_batches(
    call: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int = _BATCH
) -> np.ndarray:
    """Return what `call` gives for all images, in batches; the last one has what is left."""
    parts = [call(images[first : first + batch]) for first in range(0, len(images), batch)]
    return np.concatenate(parts)


def compiled(call: Callable[[Any], jax.Array]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of host arrays that is compiled by JAX, once for each batch size."""
    compiled_call = jax.jit(call)
    return lambda images: np.asarray(compiled_call(jnp.asarray(images)))
