"""Which examples make up which step: a pure function of the step, so resuming is exact.

The training set is walked through in one endless line: one permutation an epoch, laid end to end
and cut into batches. So every example is seen exactly once an epoch, whatever the batch size, and
no remainder is dropped.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import numpy as np

Array = np.ndarray | jax.Array  # NumPy on the host, JAX inside a step


class Batch(NamedTuple):
    """What one step needs to make its own views; every field is int32 `[batch]`.

    Attributes:
      example: index in the training set.
      position: in the global batch; it keys the example's augmentation.
      partner, partner_position: the same of the example it is mixed with.
    """

    example: Array
    position: Array
    partner: Array
    partner_position: Array


class Streamed(NamedTuple):
    """A batch that brings its pixels along.

    Attributes:
      batch: as it is for a training set on the devices; its indices are for labels.
      pixels, partner_pixels: uint8 `[n, H, W, C]` of the examples and of their mixup partners, as
        the data set has them; `partner_pixels` is None without mixup.
    """

    batch: Batch
    pixels: Array
    partner_pixels: Array | None


# Streams of NumPy's generators, the last of three numbers that seed them. None is 0: NumPy fills up
# with zeros, and (0, 0, 0) is the stream of a `dataset.split_seed` of 0.
_STREAM_PARTNERS, _STREAM_ORDER = 1, 2


@functools.lru_cache(maxsize=2)  # a batch spans two epochs at most times
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([seed, epoch, _STREAM_ORDER])
    return rng.permutation(num_examples).astype(np.int32)


def examples_at(step: int, batch_size: int, num_examples: int, seed: int) -> np.ndarray:
    """Return the indices of the examples of one step, int32 `[batch_size]`.

    Args:
      step: counted from 0.
      batch_size: of the whole step, over all devices.
      num_examples: in the training set.
      seed: of the order.
    """
    begin = step * batch_size
    parts = []
    while (num_missing := (step + 1) * batch_size - begin) > 0:
        epoch, offset = divmod(begin, num_examples)
        part = _permutation(num_examples, seed, epoch)[offset : offset + num_missing]
        parts.append(part)
        begin += len(part)
    return np.concatenate(parts)


def batch_at(
    step: int, batch_size: int, num_examples: int, seed: int, partner: str = "roll"
) -> Batch:
    """Return the global batch of one step, with every example's mixup partner.

    Args:
      step: counted from 0.
      batch_size: of the whole step, over all devices.
      num_examples: in the training set.
      seed: of the order, and of the partners.
      partner: `roll`, the next position (as big_vision does: no pair repeats, none is its own
        partner); `permutation`, a random one of the batch; `uniform`, any training example.
        Whichever, it does not depend on which device holds what.
    """
    example = examples_at(step, batch_size, num_examples, seed)
    position = np.arange(batch_size, dtype=np.int32)
    if partner == "roll":
        return Batch(example, position, np.roll(example, -1), np.roll(position, -1))
    rng = np.random.default_rng([seed, step, _STREAM_PARTNERS])
    if partner == "permutation":
        order = rng.permutation(batch_size)
        return Batch(example, position, example[order], position[order])
    if partner != "uniform":
        raise ValueError(f"unknown partner {partner!r}: expected a choice of config.mixup.partner")
    partners = rng.integers(0, num_examples, batch_size, dtype=np.int32)
    # Positions beyond the batch, so that a partner's crop is not that of an example.
    return Batch(example, position, partners, position + batch_size)


def steps_in(epochs: float, batch_size: int, num_examples: int) -> int:
    """Return the number of steps after which so many epochs have been seen in full."""
    # The tolerance keeps e.g. 0.1 * 30 epochs from gaining a step to rounding.
    return max(1, math.ceil(epochs * num_examples / batch_size - 1e-6))
