"""A recording: the teachers' answers to every view of a run, stored once and replayed at will.

Views are a function of (seed, step, position), so another student, temperature, loss or learning
rate sees the very same ones, and needs no teacher. A directory holds

    recording.json                 whose answers they are, and to which views
    shard-000012-<digest>.npy      of some steps, `[steps, batch, teachers]` answers (`answers`)
    val-<digest>.npy, test-...     of the clean images, `[teachers, N, classes]`

Each file is written whole or not at all, and the digest of its content (16 digits of the sha256) is
in its name.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import teacher
from kd_jax.teachers.answers import Form
from kd_jax.teachers.teacher import Teacher, Teachers
from kd_jax.weights import saved_network

HEADER_FILE = "recording.json"
_SHARD_BYTES = 32_000_000  # at most, but for a single step
DIGITS = 16
_NAME = re.compile(rf"(shard-(\d{{6}})|val|test)-([0-9a-f]{{{DIGITS}}})\.npy")
# What decides the views, besides data and trajectory.
VIEW_FIELDS = (
    "seed", "batch_size", "dataset.image_size", "dataset.val_examples", "dataset.split_seed",
    "dataset.validation", "distill.view", "mixup.kind", "mixup.groups", "mixup.alpha",
    "mixup.partner", "mixup.method", "augment.crop_pad_px", "augment.crop_area", "augment.flip",
)  # fmt: skip
# And of the teacher what its identity does not tell.
_FIELDS = (*VIEW_FIELDS, "teacher.dtype")


@dataclasses.dataclass(frozen=True)
class Header:
    """What a recording is of.

    Attributes:
      fields: the values of `VIEW_FIELDS`, and `teacher.dtype`; old recordings lack that.
      trajectory: its version, of which the views are.
      data_fingerprint: of the data set.
      cards: of the teachers.
      identity: `Teachers.identity`.
      shape: `(batch, teachers, classes)` of a step.
      dtype: `float32` or `float16`.
      total_steps: that it holds when it is whole.
      top: how many logits of each answer are stored; 0: all.
      temperature: with `top`, that of the rest's mass (`answers`).
    """

    fields: Mapping[str, Any]
    trajectory: int
    data_fingerprint: str
    cards: tuple[saved_network.ModelCard, ...]
    identity: str
    shape: tuple[int, int, int]
    dtype: str
    total_steps: int
    top: int = 0
    temperature: float = 1.0

    @property
    def form(self) -> Form:
        """How each answer is stored."""
        return Form(self.dtype, self.shape[-1], self.top)

    @property
    def step_bytes(self) -> int:
        """Bytes of one step."""
        return int(np.prod(self.shape[:-1])) * self.form.dtype.itemsize

    @property
    def steps_per_shard(self) -> int:
        """Steps of every shard but the last."""
        return max(1, _SHARD_BYTES // self.step_bytes)

    def differences(self, other: Header) -> list[str]:
        """Return in words what differs, but for the number of steps and the form."""
        words = [
            f"config.{path} is {other.fields.get(path)!r} and {value!r} there"
            for path, value in self.fields.items()
            if other.fields.get(path) != value
        ]
        if self.trajectory != other.trajectory:
            words.append(f"the trajectory is {other.trajectory} and {self.trajectory} there")
        if self.data_fingerprint != other.data_fingerprint:
            words.append(
                f"the data's fingerprint is {other.data_fingerprint[:8]} and "
                f"{self.data_fingerprint[:8]} there"
            )
        if self.identity != other.identity:
            names = "+".join(card.arch for card in self.cards)
            ours = "+".join(card.arch for card in other.cards)
            words.append(
                f"the teacher is {ours} {other.identity[:8]} and {names} {self.identity[:8]} there"
            )
        if self.top and self.temperature != other.temperature:
            words.append(
                f"config.distill.temperature is {other.temperature:g} and {self.temperature:g} "
                f"there, where the mass below the top {self.top} is of that temperature alone"
            )
        if self.shape[1:] != other.shape[1:] and not words:
            words.append(f"a step is {other.shape} and {self.shape} there")
        return words


def header_of(
    config: ConfigDict, teachers: Teachers, fingerprint: str, num_classes: int, total_steps: int,
    trajectory: int,
) -> Header:  # fmt: skip
    """Return the header of the recording that a run makes, or needs."""
    return Header(
        fields={path: config_lib.get_field(config, path) for path in _FIELDS},
        trajectory=trajectory,
        data_fingerprint=fingerprint,
        cards=tuple(member.card for member in teachers.members),
        identity=teachers.identity,
        shape=(config.batch_size, len(teachers.members), num_classes),
        dtype=config.teacher.record_dtype,
        total_steps=total_steps,
        top=config.teacher.record_top,
        temperature=float(config.distill.temperature),
    )


class Recording:
    """A recording on disk, to be read."""

    def __init__(self, place: str | Path, what: str = "config.teacher.replay"):
        """Read the header.

        Args:
          place: its directory.
          what: the option that names it, for messages.

        Raises:
          UserError: there is none, or it is damaged.
        """
        self.directory = reachable(place, what)
        stored = atomic_files.read_json(self.directory / HEADER_FILE)
        if stored is None:
            raise UserError(
                f"no recording in {self.directory}: expected {what} to be the directory that a run "
                "with config.teacher.record wrote"
            )
        try:
            cards = tuple(saved_network.card_of(card) for card in stored["cards"])
            self.header = Header(**{**stored, "cards": cards, "shape": tuple(stored["shape"])})
            _ = self.header.form.dtype
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.directory / HEADER_FILE} is damaged ({error}): record the teacher again"
            ) from None
        self._shard = functools.lru_cache(maxsize=2)(self._read_shard)

    def teachers(self, options: ConfigDict) -> Teachers:
        """Return the teachers that were recorded: what is known of them, and nobody to ask.

        Args:
          options: `config.teacher`.
        """
        members = [Teacher(card, None) for card in self.header.cards]
        if len(options.shares) not in (0, len(members)):
            raise UserError(
                f"config.teacher.shares is {options.shares!r}, expected a positive number for each "
                f"of the {len(members)} teachers that were recorded"
            )
        return teacher.combine(members, options.shares, options.combine)

    @property
    def is_whole(self) -> bool:
        """Whether every step is there, and the clean splits."""
        names = {match[1] for path in self.directory.iterdir()
                 if (match := _NAME.fullmatch(path.name))}  # fmt: skip
        return self.recorded_steps() == self.header.total_steps and {"val", "test"} <= names

    def recorded_steps(self) -> int:
        """Return how many steps there are, without a gap, from the first."""
        shards = set(shards_in(self.directory))
        count = 0
        while count in shards:
            count += 1
        return min(count * self.header.steps_per_shard, self.header.total_steps)

    def logits(self, step: int) -> np.ndarray:
        """Return the answers to one step's views, float32 `[batch, teachers, classes]`.

        Raises:
          UserError: they are not there, or damaged.
        """
        number, row = divmod(step, self.header.steps_per_shard)
        return self.header.form.unpack(self._shard(number)[row])

    def has(self, step: int) -> bool:
        """Return whether a step is there."""
        return step // self.header.steps_per_shard in shards_in(self.directory)

    def clean_logits(self, split: str) -> np.ndarray:
        """Return the answers to the clean images of `val` or `test`, `[teachers, N, classes]`.

        Raises:
          UserError: they are not there, or damaged.
        """
        for path in self.directory.glob(f"{split}-*.npy"):
            if _NAME.fullmatch(path.name):
                return np.array(self._read(path))
        raise UserError(
            f"the recording in {self.directory} has no answers to the {split} split: it has those "
            "to training views, and to val and test"
        )

    def _read_shard(self, number: int) -> np.ndarray:
        path = shards_in(self.directory).get(number)
        if path is None:
            raise UserError(
                f"the recording in {self.directory} has no shard {number}: let the run that "
                "records go on, or take fewer steps"
            )
        array = self._read(path)
        first = number * self.header.steps_per_shard
        steps = min(self.header.steps_per_shard, self.header.total_steps - first)
        expected = np.empty((steps, *self.header.shape[:-1]), self.header.form.dtype)
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise self._damaged(path)
        return array

    def _read(self, path: Path) -> np.ndarray:
        """Return a memory-mapped array, after its digest was compared."""
        match = _NAME.fullmatch(path.name)
        try:
            if match is None or atomic_files.sha256_of(path)[:DIGITS] != match[3]:
                raise self._damaged(path)
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            raise self._damaged(path) from None

    def _damaged(self, path: Path) -> UserError:
        return UserError(
            f"{path} is damaged, its content is not what was recorded: record the teacher again, "
            "in another directory"
        )


def size_in_bytes(header: Header) -> int:
    """Return the size of a whole recording, without the clean splits."""
    return header.step_bytes * header.total_steps


def size_of_answers(config: ConfigDict, teachers: int, num_classes: int, total_steps: int) -> int:
    """Return the bytes of a recording that is not begun, without the clean splits."""
    options = config.teacher
    form = Form(options.record_dtype, num_classes, options.record_top)
    return int(config.batch_size * teachers * total_steps * form.dtype.itemsize)


def shards_in(directory: Path) -> dict[int, Path]:
    """Return the shards of a directory by their numbers."""
    matches = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return {int(match[2]): path for match, path in matches if match and match[2]}
