"""Parts of the splits of tfds, such as `train[:80%]+test[-100:]`: how large, and do they overlap?

The syntax is tfds' own, and so is what reads it (which needs no TensorFlow).
Source: https://www.tensorflow.org/datasets/splits
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kd_jax.runtime import quiet_tensorflow
from kd_jax.runtime.errors import UserError

Range = tuple[str, int, int]  # split, first example, the one after the last


def check(specs: Mapping[str, str], shard_lengths: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return how many examples each part has; no example may be in two parts, or in one twice.

    Args:
      specs: name of a config field to the part that it chooses.
      shard_lengths: of each split, the examples of its files.

    Raises:
      UserError: one cannot be read, chooses nothing, or two overlap.
    """
    read = {field: _ranges(field, spec, shard_lengths) for field, spec in specs.items()}
    flat = [(field, each) for field, ranges in read.items() for each in ranges]
    for number, (field, one) in enumerate(flat):
        for other_field, other in flat[:number]:
            first, last = max(one[1], other[1]), min(one[2], other[2])
            if one[0] == other[0] and first < last:
                raise UserError(
                    f"config.dataset.{other_field}={specs[other_field]!r} and config.dataset."
                    f"{field}={specs[field]!r} share {last - first:,} of the "
                    f"{sum(shard_lengths[one[0]]):,} examples of {one[0]}: expected no example "
                    "twice, or what is tested on was trained on"
                    if field != other_field
                    else f"config.dataset.{field} is {specs[field]!r}, which has "
                    f"{last - first:,} examples of {one[0]} twice: expected each once, or what is "
                    "validated on was trained on"
                )
    return {field: sum(last - first for _, first, last in each) for field, each in read.items()}


def _ranges(field: str, spec: str, shard_lengths: Mapping[str, Sequence[int]]) -> list[Range]:
    """Return what one part is made of."""
    if spec in shard_lengths:  # no need for the reader, which takes half a second to import
        ranges = [(spec, 0, sum(shard_lengths[spec]))]
    else:
        ranges = _ranges_of_tfds(field, spec, shard_lengths)
    if not any(first < last for _, first, last in ranges):
        raise UserError(
            f"config.dataset.{field} is {spec!r}, which chooses no example: expected some of "
            f"{_in_words(shard_lengths)}"
        )
    return [each for each in ranges if each[1] < each[2]]


def _ranges_of_tfds(
    field: str, spec: str, shard_lengths: Mapping[str, Sequence[int]]
) -> list[Range]:
    try:
        from tensorflow_datasets.core import splits
    except ImportError as error:
        raise quiet_tensorflow.missing(error) from error
    infos = [
        splits.SplitInfo(
            name=name, shard_lengths=list(lengths), num_bytes=0, filename_template=None
        )
        for name, lengths in shard_lengths.items()
    ]
    try:
        if mixed := re.search(
            r"\[-?[\d.]+(%|shard):-?[\d.]+\]|\[-?[\d.]+:-?[\d.]+(%|shard)\]", spec
        ):
            raise ValueError(f"{mixed[0]} has a unit on one side only")
        read = splits.AbstractSplit.from_spec(spec).to_absolute(splits.SplitDict(infos))
    except Exception as error:  # tfds raises many kinds
        raise UserError(
            f"config.dataset.{field} is {spec!r} ({str(error).splitlines()[-1][:200]}): expected "
            f"one of {_in_words(shard_lengths)}, or a part such as train[:80%] or train[-1000:]"
        ) from None
    return [
        (one.splitname, one.from_ or 0, sum(shard_lengths[one.splitname]) if one.to is None
         else one.to)
        for one in read
    ]  # fmt: skip


def _in_words(shard_lengths: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} ({sum(lengths):,})" for name, lengths in shard_lengths.items())
