"""Batches for the step, from a training set on the devices or from one in host memory.

On the devices a batch is indices. A set that is too large for that stays on the host: then a batch
also carries its own pixels and its partners', gathered a few steps ahead by a thread. The step
makes the same views of both, because what is random depends on positions and not on where the
pixels lie; and since the examples of a step are a function of its number, a resumed run goes on at
the very example without reading what came before.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import sampler
from kd_jax.data.sampler import Streamed
from kd_jax.runtime import devices as devices_lib

AHEAD = 2  # calls whose pixels are on their way while another is computed


class Stacked(NamedTuple):
    """The batches of several steps that are made in one call: a leading axis is theirs."""

    batches: Any


def is_resident(options: ConfigDict, train_bytes: int) -> bool:
    """Tell whether the training set is laid over the devices.

    Args:
      options: `config.dataset`.
      train_bytes: of its images.
    """
    if options.resident == "auto":
        return train_bytes <= options.device_budget_mb * 1_000_000
    return bool(options.resident == "always")


class Feeder:
    """Gives the batches of calls in order, cut for this process's devices."""

    def __init__(
        self,
        batch_of: Callable[[int], sampler.Batch],
        images: np.ndarray | None,
        devices: list[jax.Device],
        *,
        partners: bool,
        parts: int = 1,
        calls: Iterable[range],
    ):
        """Begin to gather.

        Args:
          batch_of: step to the global batch.
          images: uint8 `[N, H, W, C]` in host memory; None where the devices have them.
          devices: this process's.
          partners: whether the partners' pixels are needed.
          parts: that a batch is computed in, see `devices.shard`.
          calls: the steps of each call that will be asked for, in order.
        """
        self._batch_of, self._images, self._devices = batch_of, images, devices
        self._partners, self._parts, self._calls = partners, parts, iter(calls)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "feeder")
        self._futures: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        for _ in range(AHEAD if images is not None else 0):
            self._begin_next()

    def close(self) -> None:
        """Drop what was gathered ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def next(self) -> Any:
        """Return the next call's batch, `[devices, n, ...]` each: a `Batch` or a `Streamed`.

        Of several steps it is a `Stacked` of them, `[devices, steps, n, ...]` each.
        """
        if self._images is None:
            return self._make(next(self._calls))
        self._begin_next()
        return self._futures.popleft().result()

    def _begin_next(self) -> None:
        call = next(self._calls, None)
        if call is not None:
            self._futures.append(self._thread.submit(self._make, call))

    def _make(self, call: range) -> Any:
        batches = [self._gather(step) for step in call]
        batch = batches[0]
        if len(batches) > 1:
            batch = Stacked(jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *batches))
        return batch if self._images is None else devices_lib.place(batch, self._devices)

    def _gather(self, step: int) -> Any:
        batch = devices_lib.shard(self._batch_of(step), self._devices, self._parts)
        if self._images is None:
            return batch
        pixels = self._images[batch.example]
        partner_pixels = self._images[batch.partner] if self._partners else None
        return Streamed(batch, pixels, partner_pixels)
