"""The teachers' answers that a study records once, for all of its runs that see the same views.

Runs that cannot train as one cohort, or are added later, may still look at the same views under the
same teacher. With `--record` the first of them records its teacher's answers in `answers/NAME` of
the study's directory, under a lease of its own; when the recording is whole the others replay it.
Where another process is recording, a new run asks its teacher itself.

A run stays with what it began with: one that asked in the step never replays, and one that recorded
or replayed goes on with recorded answers, because those of another precision, or of a program that
fuses the teacher with the student, are not the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.config import schema
from kd_jax.runtime.errors import UserError
from kd_jax.study import spec
from kd_jax.study.leases import Leases
from kd_jax.training import trajectory, workdir

FOLDER = "answers"  # of a study's directory
# What decides the answers, besides the views and the trajectory.
_TEACHER_FIELDS = (
    "dataset.name", "dataset.train_split", "dataset.test_split", "teacher.arch", "teacher.weights",
    "teacher.ensemble", "teacher.normalisation", "teacher.channels", "teacher.input_size",
    "teacher.crop_fraction",
    "teacher.dtype", "teacher.record_dtype", "teacher.record_top",
)  # fmt: skip


class BusyError(Exception):
    """Another process records what a run that has begun needs."""


@dataclasses.dataclass(frozen=True)
class Recordings:
    """The recordings of a study, as one process sees them.

    Attributes:
      root: directory of the study.
      leases: of this process.
      is_asked: whether new runs record and replay (`--record`).
    """

    root: Path
    leases: Leases
    is_asked: bool

    def place(self, run: spec.Run) -> Path | None:
        """Return the directory of the recording that a run makes or reads; None: it has none.

        For a run that has begun it is the one that it began with.
        """
        teacher = run.config.teacher
        if teacher.record or teacher.replay:  # of its own, which is none of the study's business
            return None
        if self._has_begun(run):
            began_with = workdir.load_config(self._workdir(run)).teacher
            name = Path(began_with.record or began_with.replay).name
            return self.root / FOLDER / name if name else None
        views = _views(run) if self.is_asked else None
        if views is None:
            return None
        unit, length = _length(run.config)
        longer = [
            (steps, path)
            for path in (self.root / FOLDER).glob(f"{views}-{unit}*")
            if (steps := float(path.name.removeprefix(f"{views}-{unit}"))) >= length
            and _is_whole(path)
        ]
        number = int(length) if length.is_integer() else length  # in full: it is a name
        own = self.root / FOLDER / f"{views}-{unit}{number}"
        return min(longer, default=(length, own))[1]

    def length(self, run: spec.Run) -> float:
        """Return how long a run's recording is: longer ones first serve the shorter runs too."""
        return _length(run.config)[1] if self.is_asked else 0.0

    def must_wait(self, run: spec.Run) -> bool:
        """Return whether a run that has begun needs a recording that another process makes now."""
        place = self.place(run)
        if place is None or not self._has_begun(run) or _is_whole(place):
            return False
        return self.leases.owner(_lease(place)) is not None

    @contextlib.contextmanager
    def opened(self, place: Path | None, runs: Mapping[str, spec.Run]) -> Iterator[dict[str, Any]]:
        """Give the fields of the config by which runs get their answers, while they train.

        Args:
          place: `place` of all these runs.
          runs: by name.

        Raises:
          BusyError: see `must_wait`.
        """
        if place is None:
            yield {}
        elif _is_whole(place):
            yield {"teacher.replay": str(place.resolve())}
        elif self.leases.acquire(_lease(place)) is not None:
            form = _form(next(iter(runs.values())).config)
            yield {"teacher.record": str(place.resolve()), **form}
            self.leases.release(_lease(place), "whole" if _is_whole(place) else "unfinished")
        elif any(self._has_begun(run) for run in runs.values()):
            raise BusyError
        else:
            yield {}

    def _has_begun(self, run: spec.Run) -> bool:
        return (self._workdir(run) / workdir.CONFIG_FILE).exists()

    def _workdir(self, run: spec.Run) -> Path:
        return self.root / spec.FOLDER / run.name


def form_in_use(run: spec.Run) -> dict[str, Any]:
    """Return the fields of how answers are recorded for a run to which the study gives none.

    A row may say how its answers are to be recorded, and be trained without `--record`, or replay
    what another has recorded. A row that names its own recording is left as it is.
    """
    teacher = run.config.teacher
    return _form(run.config if teacher.record or teacher.replay else config_lib.default_config())


def _form(config: ConfigDict) -> dict[str, Any]:
    return {path: config_lib.get_field(config, path) for path in schema.FOLLOWERS["teacher.record"]}


def _views(run: spec.Run) -> str | None:
    """Return a digest of what decides a run's answers, but its length; None if nobody is asked."""
    from kd_jax.teachers.recording import VIEW_FIELDS

    config = run.config
    has_teacher = run.teacher or config.teacher.weights or config.teacher.arch
    if not has_teacher or config.distill.label_weight == 1 or config.distill.view == "fixed":
        return None
    if config.distill.features:  # of a teacher that is asked in the step
        return None
    fields = {path: config_lib.get_field(config, path) for path in (*VIEW_FIELDS, *_TEACHER_FIELDS)}
    if config.teacher.record_top:  # the rest's mass is of one temperature
        fields["distill.temperature"] = float(config.distill.temperature)
    text = json.dumps([fields, run.teacher, trajectory.VERSION])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _length(config: ConfigDict) -> tuple[str, float]:
    """Return the unit and the length of a run; which is longer is known within a unit alone."""
    if config.total_steps:
        return "steps", float(config.total_steps)
    return "epochs", float(config.total_epochs)


def _lease(place: Path) -> str:
    """Return the name of the lease on a recording; no run has a name with such a beginning."""
    return f".{FOLDER}-{place.name}"


def _is_whole(place: Path) -> bool:
    from kd_jax.teachers.recording import HEADER_FILE, Recording

    if not (place / HEADER_FILE).exists():
        return False
    try:
        return Recording(place).is_whole
    except UserError:  # the run that takes it up says what is wrong with it
        return False
