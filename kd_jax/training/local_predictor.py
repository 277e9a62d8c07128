"""Logits of any images by a network that is looked at outside of a run, on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kd_jax.runtime import devices as devices_lib
from kd_jax.training.evaluator import Predictor


class LocalPredictor:
    """A network on one device; one program for each batch size, and those are powers of two."""

    def __init__(
        self,
        logits_of: Callable[[Any, jax.Array], jax.Array],
        variables: Any,
        *,
        device: jax.Device | None = None,
        most: int = 256,
    ):
        """Place a network.

        Args:
          logits_of: `logits_of(variables, pixels)` gives `[..., n, classes]`.
          variables: its first argument, in host memory or on a device.
          device: where it computes; None: JAX's first.
          most: images that are looked at together. Fewer are filled up to a power of two.
        """
        self._devices = [device or jax.local_devices()[0]]
        self._logits_of, self._most = logits_of, most
        self._variables = devices_lib.replicate(variables, self._devices)
        self._predictors: dict[int, Predictor] = {}

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return float32 `[..., N, classes]`.

        Args:
          images: uint8 `[N, H, W, C]` with at least one image.
        """
        batch = min(self._most, 1 << (len(images) - 1).bit_length())
        if batch not in self._predictors:
            self._predictors[batch] = Predictor(self._logits_of, self._devices, batch)
        return self._predictors[batch].logits(self._variables, images)
