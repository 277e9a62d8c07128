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
    parts = {field: _ranges(field, spec, shard_lengths) for field, spec in specs.items()}
    pairs = [(field, piece) for field, ranges in parts.items() for piece in ranges]
    for number, (field, piece) in enumerate(pairs):
        for earlier_field, earlier_piece in pairs[:number]:
            first, last = max(piece[1], earlier_piece[1]), min(piece[2], earlier_piece[2])
            if piece[0] == earlier_piece[0] and first < last:
                raise UserError(
                    f"config.dataset.{earlier_field}={specs[earlier_field]!r} and config.dataset."
                    f"{field}={specs[field]!r} share {last - first:,} of the "
                    f"{sum(shard_lengths[piece[0]]):,} examples of {piece[0]}: expected no example "
                    "twice, or what is tested on was trained on"
                    if field != earlier_field
                    else f"config.dataset.{field} is {specs[field]!r}, which has "
                    f"{last - first:,} examples of {piece[0]} twice: expected each once, or what "
                    "is validated on was trained on"
                )
    return {
        field: sum(last - first for _, first, last in ranges) for field, ranges in parts.items()
    }


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
    return [piece for piece in ranges if piece[1] < piece[2]]


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
        if mismatch := re.search(
            r"\[-?[\d.]+(%|shard):-?[\d.]+\]|\[-?[\d.]+:-?[\d.]+(%|shard)\]", spec
        ):
            raise ValueError(f"{mismatch[0]} has a unit on one side only")
        instructions = splits.AbstractSplit.from_spec(spec).to_absolute(splits.SplitDict(infos))
    except Exception as error:  # tfds raises many kinds
        raise UserError(
            f"config.dataset.{field} is {spec!r} ({str(error).splitlines()[-1][:200]}): expected "
            f"one of {_in_words(shard_lengths)}, or a part such as train[:80%] or train[-1000:]"
        ) from None
    return [
        (
            instruction.splitname,
            instruction.from_ or 0,
            sum(shard_lengths[instruction.splitname]) if instruction.to is None else instruction.to,
        )
        for instruction in instructions
    ]


def _in_words(shard_lengths: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} ({sum(lengths):,})" for name, lengths in shard_lengths.items())
