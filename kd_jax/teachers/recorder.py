"""Make a recording of the teachers' answers while a run trains, see `recording`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
from pathlib import Path

import numpy as np

from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import answers
from kd_jax.teachers.recording import DIGITS, HEADER_FILE, Header, Recording, size_in_bytes


def check(place: str | Path, header: Header, limit_gb: float) -> Path:
    """Return the directory of a recording, if it can be made or taken up there. Writes nothing.

    Arguments and errors as `Recorder`.
    """
    directory = reachable(place, "config.teacher.record")
    if (directory / HEADER_FILE).exists():
        stored = Recording(directory, "config.teacher.record").header
        words = stored.differences(header)
        if (stored.form, stored.total_steps) != (header.form, header.total_steps):
            words.append(
                f"it has {stored.total_steps} steps in {stored.form}, and this run "
                f"{header.total_steps} in {header.form}"
            )
        if words:
            raise UserError(
                f"config.teacher.record is {directory}, which holds another recording "
                f"({'; '.join(words)}): give this one a directory of its own"
            )
        return directory
    if directory.exists() and not directory.is_dir():
        raise UserError(f"config.teacher.record is {directory}, a file: expected a directory")
    if directory.is_dir() and any(
        not atomic_files.is_partial(path) for path in directory.iterdir()
    ):
        raise UserError(
            f"config.teacher.record is {directory}, which holds other files: expected a new "
            "directory, or one of an earlier start of this run"
        )
    size = size_in_bytes(header)
    if size > limit_gb * 1e9:
        raise UserError(
            f"the recording would take {size / 1e9:.1f} GB, and config.teacher.record_limit_gb is "
            f"{limit_gb:g}: raise it, take fewer steps, or record less of each answer with "
            "config.teacher.record_dtype=float16 or config.teacher.record_top"
        )
    above = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(above).free
    if size > free:
        raise UserError(
            f"the recording would take {size / 1e9:.1f} GB, and {above} has {free / 1e9:.1f} GB "
            "left: make room, or choose another config.teacher.record"
        )
    return directory


class Recorder:
    """A recording that a run makes. Finished shards of an earlier start are kept."""

    def __init__(self, place: str | Path, header: Header, limit_gb: float):
        """Begin it, or take it up.

        Args:
          place: its directory; made when missing.
          header: of this run.
          limit_gb: largest size that is allowed.

        Raises:
          UserError: the directory holds another recording or other files, or there is no room.
        """
        self._directory = check(place, header, limit_gb)
        self._header = header
        if not (self._directory / HEADER_FILE).exists():
            atomic_files.write_json(self._directory / HEADER_FILE, dataclasses.asdict(header))
        self._rows: dict[int, np.ndarray] = {}

    def recording(self) -> Recording:
        """Return the recording as it is on disk now."""
        return Recording(self._directory, "config.teacher.record")

    def missing_before(self, step: int) -> range:
        """Return the steps before `step` that are in its shard, which is not on disk or in memory.

        A run that resumes within a shard asks for them again.
        """
        first = step - step % self._header.steps_per_shard
        return range(first, first if step - 1 in self._rows else step)

    def add(self, step: int, logits: np.ndarray) -> np.ndarray:
        """Keep the answers to one step's views, and write the shard that they complete.

        Args:
          step: after those of its shard that were added.
          logits: float32 `[batch, teachers, classes]`.

        Returns:
          the answers as they come back, float32 of the same shape: what the student learns from,
          so that a replay gives the same.
        """
        header = self._header
        rounded = header.form.pack(logits, header.temperature)
        if not answers.is_finite(rounded):  # what does not fit is infinite
            raise UserError(
                f"the teacher's logits do not fit into {header.dtype} (the largest is "
                f"{np.abs(logits).max():g}): set config.teacher.record_dtype=float32"
            )
        self._rows[step] = rounded
        number = step // header.steps_per_shard
        first = number * header.steps_per_shard
        last = min(first + header.steps_per_shard, header.total_steps)
        if step == last - 1:
            shard = np.stack([self._rows[each] for each in range(first, last)])
            self._write(f"shard-{number:06d}", shard)
            self._rows.clear()
        return header.form.unpack(rounded)

    def add_clean(self, split: str, logits: np.ndarray) -> None:
        """Write the answers to the clean images of a split, float32 `[teachers, N, classes]`."""
        if not any(self._directory.glob(f"{split}-*.npy")):
            self._write(split, logits.astype(np.float32))

    def _write(self, name: str, array: np.ndarray) -> None:
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()[:DIGITS]
        atomic_files.write_whole(self._directory / f"{name}-{digest}.npy", content.getvalue())
