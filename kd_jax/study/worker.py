"""What one process does in a study: acquire leases, train the runs, record how they ended.

The process trains one run after another, so Python, JAX and TensorFlow start once. If a run kills
the process, finished runs are safe on disk, and the lease of the killed run becomes stale.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.runtime import atomic_files, signals
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.study import spec
from kd_jax.study.leases import Leases
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
      stop: request to stop, from a signal.
    """

    study: spec.Study
    root: Path
    teachers: Path | None
    groups: Sequence[Sequence[spec.Run]]
    earlier_failures: Mapping[str, Any]
    leases: Leases
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
        """Return whether a run is open, and its teacher, if that is a run, is not."""
        teacher = self._teacher(run)
        return self.is_open(run) and (teacher is None or not self.is_open(teacher))

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
                self._train(acquired_runs)
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
        each time delays only itself.

        Returns:
          runs by name; empty if no run is both ready and free.
        """
        attempts = self.leases.attempts
        groups = sorted(self.groups, key=lambda group: max(attempts(run.name) for run in group))
        for only_whole_groups in (True, False):
            for group in groups:
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

    def _train(self, runs: Mapping[str, spec.Run]) -> None:
        """Train runs and release their leases: together if that works, else one by one."""
        from kd_jax.training.tracker import MemberError

        remaining_runs = dict(runs)
        while len(remaining_runs) > 1:
            names = {self.directory(run).resolve(): name for name, run in remaining_runs.items()}
            try:
                configs = [self._resolved_config(run) for run in remaining_runs.values()]
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
                self._train_alone(run)

    def _train_alone(self, run: spec.Run) -> None:
        self.stop.has_unsaved_work(False)
        logger.info("--- %s", run.name)
        try:
            config = self._resolved_config(run)
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

    def _resolved_config(self, run: spec.Run) -> ConfigDict:
        """Return a run's config with the weights of its teacher.

        Raises:
          UserError: the run that trains its teacher failed, or there are no weights.
        """
        teacher = self._teacher(run)
        if teacher is not None and not self.is_done(teacher):
            raise UserError(f"its teacher, the run {teacher.name}, failed: mend that one first")
        return _with_teacher_weights(run, self.root, self.teachers)


def create(
    study: spec.Study,
    root: Path,
    teachers: Path | None,
    most: int,
    leases: Leases,
    stop: signals.StopRequest,
) -> Worker:
    """Return a worker of this process; it trains at most `most` runs together."""
    failures = {run.name: atomic_files.read_json(_failure_file(root, run)) for run in study.runs}
    return Worker(
        study=study,
        root=root,
        teachers=teachers,
        groups=group_runs(study.runs, most, lambda run: _cohort_key(run, root, teachers)),
        earlier_failures=failures,
        leases=leases,
        stop=stop,
    )


def group_runs(
    runs: Sequence[spec.Run], most: int, key: Callable[[spec.Run], str | None]
) -> list[list[spec.Run]]:
    """Return the runs in groups of the same key, in their order.

    Args:
      runs: all runs of a study, so that all processes make the same groups.
      most: runs in a group.
      key: equal for runs that may be trained together; None for a run that must be alone.
    """
    groups: list[list[spec.Run]] = []
    open_groups: dict[str, list[spec.Run]] = {}
    for run in runs:
        run_key = key(run) if most > 1 else None
        if run_key is not None and run_key in open_groups and len(open_groups[run_key]) < most:
            open_groups[run_key].append(run)
            continue
        groups.append([run])
        if run_key is not None:
            open_groups[run_key] = groups[-1]
    return groups


def _train_together(
    configs: Sequence[ConfigDict], directories: Sequence[Path], stop: signals.StopRequest
) -> None:
    """Train one run, or a cohort; imports JAX."""
    from kd_jax.training.train import train_together

    train_together(configs, directories, stop)


def _failure_file(root: Path, run: spec.Run) -> Path:
    return root / FAILED / f"{run.name}.json"


def _with_teacher_weights(run: spec.Run, root: Path, teachers: Path | None) -> ConfigDict:
    """Return a run's config with the path of its teacher's weights.

    Raises:
      UserError: there are no weights.
    """
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.teacher.weights = spec.teacher_weights(run, root, teachers)
    return config


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


def _cohort_key(run: spec.Run, root: Path, teachers: Path | None) -> str | None:
    """Return the key of a run for `group_runs`; None if its teacher has no weights yet."""
    from kd_jax.training import cohort

    try:
        return cohort.key(_with_teacher_weights(run, root, teachers))
    except UserError:  # training the run reports it
        return None
