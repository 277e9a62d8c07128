"""What one process does in a study: acquire leases, train the runs, record how they ended.

The process trains one run after another, so Python, JAX and TensorFlow start once. If a run kills
the process, finished runs are safe on disk, and the lease of the killed run becomes stale.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.runtime import atomic_files, signals
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.study import groups, lease_files, recordings, spec
from kd_jax.study.leases import Leases
from kd_jax.study.recordings import BusyError, Recordings
from kd_jax.training import workdir

FAILED = "failed"  # directory of the records of failed runs
POLL_SECONDS = 1.0
_IN_USE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process that works on a study; `create` makes it.

    Attributes:
      study: its runs are trained.
      root: directory of the study.
      teachers: directory of teachers' weights; None if there is none.
      groups: all runs; those of a group may be trained together.
      earlier_failures: records of failures before this start, whose runs are tried again; None
        for the other runs.
      leases: of this process.
      recordings: of the teachers' answers.
      stop: request to stop, from a signal.
    """

    study: spec.Study
    root: Path
    teachers: Path | None
    groups: Sequence[Sequence[spec.Run]]
    earlier_failures: Mapping[str, Any]
    leases: Leases
    recordings: Recordings
    stop: signals.StopRequest

    def directory(self, run: spec.Run) -> Path:
        """Return the workdir of a run."""
        return self.root / spec.FOLDER / run.name

    def is_done(self, run: spec.Run) -> bool:
        """Return whether a run is finished, by any process."""
        return (self.directory(run) / workdir.RESULT_FILE).exists()

    def failure(self, run: spec.Run) -> dict[str, Any] | None:
        """Return the record of a run that failed since this start, in any process; else None."""
        if self.is_done(run):
            return None
        failure = atomic_files.read_json(_failure_file(self.root, run))
        return None if failure == self.earlier_failures.get(run.name) else failure

    def is_open(self, run: spec.Run) -> bool:
        """Return whether a run is neither finished nor failed."""
        return not self.is_done(run) and self.failure(run) is None

    def is_ready(self, run: spec.Run) -> bool:
        """Return whether a run is open, and nothing that it needs is still being made.

        That is its teacher, if that is a run, or the recording that it began with.
        """
        teacher = self._teacher(run)
        if not self.is_open(run) or (teacher is not None and self.is_open(teacher)):
            return False
        return not self.recordings.must_wait(run)

    def work(self) -> None:
        """Train runs until none is open, here or in another process.

        Raises:
          StoppedError: a signal asked to stop; the run in training is saved.
        """
        _set_devices(self.study.runs)
        missing = [run for run in self.study.runs if self.is_open(run)]
        logger.info(
            "%d runs, %d finished, %d to train: %s",
            len(self.study.runs),
            sum(map(self.is_done, self.study.runs)),
            len(missing),
            _length_of(missing),
        )
        is_waiting = False
        while open_runs := [run for run in self.study.runs if self.is_open(run)]:
            # A failed run leaves nothing to save: a signal between two runs ends the process.
            self.stop.has_unsaved_work(False)
            acquired_runs = self.acquire()
            if acquired_runs:
                is_waiting = False
                for place, runs in self._by_recording(acquired_runs).items():
                    self._train(runs, place)
                continue
            if not is_waiting:
                owners = {self.leases.owner(run.name) for run in open_runs} - {None}
                logger.info("%d run(s) left, with %s", len(open_runs), ", ".join(map(str, owners)))
                is_waiting = True
            time.sleep(POLL_SECONDS)
        self.stop.has_unsaved_work(False)

    def acquire(self) -> dict[str, spec.Run]:
        """Acquire the leases of runs that may be trained together.

        A group of which another process has a run is left to that process, unless no other group
        is free. Groups with the fewest attempts come first, so that a run that kills its process
        each time delays only itself; then those with the longest recordings.

        Returns:
          runs by name; empty if no run is both ready and free.
        """
        attempts = self.leases.attempts
        ordered = sorted(
            self.groups,
            key=lambda group: (
                max(attempts(run.name) for run in group),
                -self.recordings.length(group[0]),
            ),
        )
        for only_whole_groups in (True, False):
            for group in ordered:
                ready_runs = [run for run in group if self.is_ready(run)]
                acquired_runs: dict[str, spec.Run] = {}
                for run in ready_runs:
                    if self.leases.acquire(run.name) is not None:
                        acquired_runs[run.name] = run
                    elif only_whole_groups:
                        break
                for run in list(acquired_runs.values()):
                    if not self.is_open(run):  # it ended between the two checks
                        self.leases.release(acquired_runs.pop(run.name).name, "done")
                if acquired_runs:
                    return acquired_runs
        return {}

    def _by_recording(self, runs: Mapping[str, spec.Run]) -> dict[Path | None, dict[str, spec.Run]]:
        """Return runs by the recording that they make or read; of one cohort some may have none."""
        parts: dict[Path | None, dict[str, spec.Run]] = {}
        for name, run in runs.items():
            parts.setdefault(self.recordings.place(run), {})[name] = run
        return parts

    def _train(self, runs: Mapping[str, spec.Run], place: Path | None) -> None:
        """Train runs and release their leases; `place` is that of their recording, or None."""
        try:
            with self.recordings.opened(place, runs) as fields:
                self._train_with(runs, fields)
        except BusyError:  # the other process was faster since `is_ready`
            for name in runs:
                self.leases.release(name, lease_files.STOPPED)

    def _train_with(self, runs: Mapping[str, spec.Run], fields: Mapping[str, str]) -> None:
        """Train runs together if that works, else one by one.

        Args:
          runs: by name.
          fields: of the configs, by which they get their teachers' answers.
        """
        from kd_jax.training.tracker import MemberError

        remaining_runs = dict(runs)
        while len(remaining_runs) > 1:
            names = {self.directory(run).resolve(): name for name, run in remaining_runs.items()}
            try:
                configs = [self._resolved_config(run, fields) for run in remaining_runs.values()]
                logger.info("--- together: %s", ", ".join(remaining_runs))
                _train_together(configs, list(names), self.stop)
                break
            except signals.StoppedError:
                raise
            except MemberError as error:  # the others go on from their newest checkpoints
                self._finish(remaining_runs.pop(names[error.workdir]), "failed", str(error))
            except Exception as error:  # training each alone shows which run causes it
                logger.warning("not together (%s), so one after another", error)
                break
        for run in remaining_runs.values():
            if self.is_done(run):
                self._finish(run, "done")
            else:
                self._train_alone(run, fields)

    def _train_alone(self, run: spec.Run, fields: Mapping[str, str]) -> None:
        self.stop.has_unsaved_work(False)
        logger.info("--- %s", run.name)
        try:
            config = self._resolved_config(run, fields)
            _train_together([config], [self.directory(run)], self.stop)
        except signals.StoppedError:
            raise
        except workdir.InUseError as error:  # trained by hand, or from another container
            logger.warning("%s", error)
            self.leases.release(run.name, "in use")
            self.stop.has_unsaved_work(False)
            time.sleep(_IN_USE_SECONDS)
        except UserError as error:
            self._finish(run, "failed", str(error))
        except Exception as error:  # a defect in kd_jax must not stop the other runs
            sentence = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._finish(run, "failed", sentence, traceback.format_exc())
        else:
            self._finish(run, "done")

    def _finish(self, run: spec.Run, outcome: str, error: str = "", details: str = "") -> None:
        """Record the outcome of a run, and release its lease.

        Args:
          run: finished or failed.
          outcome: for the lease, `done` or `failed`.
          error: a sentence; empty if the run did not fail.
          details: traceback.
        """
        path = _failure_file(self.root, run)
        if error:
            logger.warning("%s failed: %s", run.name, error)
            attempts = self.leases.attempts(run.name)  # makes a record differ from earlier ones
            failure = {"run": run.name, "error": error, "tries": attempts, "traceback": details}
            atomic_files.write_json(path, failure)
        else:
            path.unlink(missing_ok=True)
        self.leases.release(run.name, outcome)

    def _teacher(self, run: spec.Run) -> spec.Run | None:
        """Return the run of this study that trains a run's teacher; None if there is none."""
        return next((teacher for teacher in self.study.runs if teacher.name == run.teacher), None)

    def _resolved_config(self, run: spec.Run, fields: Mapping[str, Any]) -> ConfigDict:
        """Return a run's config with the weights of its teacher, and with `fields`.

        Raises:
          UserError: the run that trains its teacher failed, or there are no weights.
        """
        teacher = self._teacher(run)
        if teacher is not None and not self.is_done(teacher):
            raise UserError(f"its teacher, the run {teacher.name}, failed: mend that one first")
        config = groups.with_teacher_weights(run, self.root, self.teachers)
        config.update_from_flattened_dict({**recordings.form_in_use(run), **fields})
        return config


def create(
    study: spec.Study,
    root: Path,
    teachers: Path | None,
    most: int,
    leases: Leases,
    stop: signals.StopRequest,
    *,
    record: bool = False,
) -> Worker:
    """Return a worker of this process; it trains at most `most` runs together.

    With `record` it records the teachers' answers, see `recordings`.
    """
    failures = {run.name: atomic_files.read_json(_failure_file(root, run)) for run in study.runs}
    return Worker(
        study=study,
        root=root,
        teachers=teachers,
        groups=groups.group_runs(
            study.runs, most, lambda run: groups.cohort_key(run, root, teachers)
        ),
        earlier_failures=failures,
        leases=leases,
        recordings=Recordings(root, leases, record),
        stop=stop,
    )


def _train_together(
    configs: Sequence[ConfigDict], directories: Sequence[Path], stop: signals.StopRequest
) -> None:
    """Train one run, or a cohort; imports JAX."""
    from kd_jax.training.train import train_together

    train_together(configs, directories, stop)


def _failure_file(root: Path, run: spec.Run) -> Path:
    return root / FAILED / f"{run.name}.json"


def _length_of(runs: Sequence[spec.Run]) -> str:
    """Return in words how much training runs are together."""
    steps = sum(run.config.total_steps or 0 for run in runs)
    epochs = sum(run.config.total_epochs for run in runs if not run.config.total_steps)
    words = [f"{steps:,} steps"] * bool(steps) + [f"{epochs:g} epochs"] * bool(epochs)
    return " and ".join(words) or "nothing"


def _set_devices(runs: Sequence[spec.Run]) -> None:
    """Start JAX with a number of devices that divides the batch of every run.

    The number cannot change while the process lives.
    """
    import jax

    from kd_jax.runtime import devices

    batches = [run.config.batch_size // max(run.config.accumulate, 1) for run in runs]
    devices.prepare(0, math.gcd(*batches))
    jax.local_devices()
