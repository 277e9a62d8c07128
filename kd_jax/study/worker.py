"""What a process does in a study: take free runs, train them, say how they ended.

In one process, run after run: Python, JAX and TensorFlow start once. A run that ends the process
with it takes nothing along: what is done is on disk, and its claim is found stale.
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

FAILED = "failed"
POLL_SECONDS = 1.0
_IN_USE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Session:
    """What one start of this command works with.

    Attributes:
      study: what is to be done.
      root: its directory.
      teachers: where weights are looked for; None: nowhere.
      groups: its runs, those together that may be trained together.
      earlier: what failed before this start, which is tried again.
      claims: of this process.
      stop: how it is asked to stop.
    """

    study: spec.Study
    root: Path
    teachers: Path | None
    groups: Sequence[Sequence[spec.Run]]
    earlier: Mapping[str, Any]
    claims: Leases
    stop: signals.StopRequest

    def directory(self, run: spec.Run) -> Path:
        """Return the workdir of a run."""
        return self.root / spec.FOLDER / run.name

    def is_done(self, run: spec.Run) -> bool:
        """Tell whether a run is finished, whoever did it."""
        return (self.directory(run) / workdir.RESULT_FILE).exists()

    def failure(self, run: spec.Run) -> dict[str, Any] | None:
        """Return why a run failed since this start, in whichever process; None if it did not."""
        if self.is_done(run):
            return None
        failed = atomic_files.read_json(_failure_file(self.root, run))
        return None if failed == self.earlier.get(run.name) else failed

    def is_open(self, run: spec.Run) -> bool:
        """Tell whether a run is neither finished nor failed."""
        return not self.is_done(run) and self.failure(run) is None

    def is_ready(self, run: spec.Run) -> bool:
        """Tell whether a run is open, and the run that it needs is not."""
        teacher = next((other for other in self.study.runs if other.name == run.teacher), None)
        return self.is_open(run) and (teacher is None or not self.is_open(teacher))


def start(
    study: spec.Study,
    root: Path,
    teachers: Path | None,
    most: int,
    own: Leases,
    stop: signals.StopRequest,
) -> Session:
    """Return what this process works with; `most` is how many runs may train together."""
    return Session(
        study=study,
        root=root,
        teachers=teachers,
        groups=groups(study.runs, most, lambda run: _key(run, root, teachers)),
        earlier={run.name: atomic_files.read_json(_failure_file(root, run)) for run in study.runs},
        claims=own,
        stop=stop,
    )


def groups(
    listed: Sequence[spec.Run], most: int, key: Callable[[spec.Run], str | None]
) -> list[list[spec.Run]]:
    """Return the runs, those of one key together, in the order in which they are listed.

    Args:
      listed: all runs of a study, so that all processes find the same groups.
      most: runs of a group.
      key: of what may be trained together; None: alone.
    """
    found: list[list[spec.Run]] = []
    open_group: dict[str, list[spec.Run]] = {}
    for run in listed:
        own = key(run) if most > 1 else None
        if own is not None and own in open_group and len(open_group[own]) < most:
            open_group[own].append(run)
            continue
        found.append([run])
        if own is not None:
            open_group[own] = found[-1]
    return found


def work(session: Session) -> None:
    """Train what is free until nothing is open, here or in another process.

    Raises:
      StoppedError: it was asked to; the run is saved.
    """
    _set_devices(session.study.runs)
    waited = False
    while still_open := [run for run in session.study.runs if session.is_open(run)]:
        # Whatever a failed run left is not worth saving: a signal between two runs ends it at once.
        session.stop.has_unsaved_work(False)
        taken = take(session)
        if taken:
            waited = False
            _train(session, taken)
            continue
        if not waited:
            holders = {session.claims.holder(run.name) for run in still_open} - {None}
            logger.info("%d run(s) left, with %s", len(still_open), ", ".join(map(str, holders)))
            waited = True
        time.sleep(POLL_SECONDS)
    session.stop.has_unsaved_work(False)


def take(session: Session) -> dict[str, spec.Run]:
    """Claim runs that may be trained together; none if no run is both ready and free.

    A group that another process has begun is left to it, unless there is no other. Those that were
    tried least often come first, so that a run which ends its process each time is only in the way
    of itself.
    """
    tries = session.claims.tries
    in_order = sorted(session.groups, key=lambda group: max(tries(run.name) for run in group))
    for whole in (True, False):
        for group in in_order:
            ready = [run for run in group if session.is_ready(run)]
            taken: dict[str, spec.Run] = {}
            for run in ready:
                if session.claims.take(run.name) is not None:
                    taken[run.name] = run
                elif whole:
                    break
            for run in list(taken.values()):
                if not session.is_open(run):  # it ended while we looked
                    session.claims.release(taken.pop(run.name).name, "done")
            if taken:
                return taken
    return {}


def _train(session: Session, taken: Mapping[str, spec.Run]) -> None:
    """Train what was claimed and let go of it; together if that works, else one after another."""
    from kd_jax.training.loop import MemberError

    left = dict(taken)
    while len(left) > 1:
        places = {session.directory(run).resolve(): name for name, run in left.items()}
        try:
            configs = [_resolved(session, run) for run in left.values()]
            logger.info("--- together: %s", ", ".join(left))
            _train_together(configs, list(places), session.stop)
            break
        except signals.StoppedError:
            raise
        except MemberError as error:  # the others go on from their newest checkpoints
            _end(session, left.pop(places[error.workdir]), "failed", str(error))
        except Exception as error:  # whosever it is, it shows when each is trained alone
            logger.warning("not together (%s), so one after another", error)
            break
    for run in left.values():
        if session.is_done(run):
            _end(session, run, "done")
        else:
            _train_alone(session, run)


def _train_alone(session: Session, run: spec.Run) -> None:
    session.stop.has_unsaved_work(False)
    logger.info("--- %s", run.name)
    try:
        config = _resolved(session, run)
        _train_together([config], [session.directory(run)], session.stop)
    except signals.StoppedError:
        raise
    except workdir.InUseError as error:  # somebody trains it by hand, or in another container
        logger.warning("%s", error)
        session.claims.release(run.name, "in use")
        session.stop.has_unsaved_work(False)
        time.sleep(_IN_USE_SECONDS)
    except UserError as error:
        _end(session, run, "failed", str(error))
    except Exception as error:  # a bug of ours is no reason to leave the others undone
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _end(session, run, "failed", words, traceback.format_exc())
    else:
        _end(session, run, "done")


def _train_together(
    configs: Sequence[ConfigDict], directories: Sequence[Path], stop: signals.StopRequest
) -> None:
    """Train one run, or a cohort."""
    from kd_jax.training.train import train_together

    train_together(configs, directories, stop)


def _end(session: Session, run: spec.Run, how: str, error: str = "", details: str = "") -> None:
    """Record how a run ended, and let go of it."""
    path = _failure_file(session.root, run)
    if error:
        logger.warning("%s failed: %s", run.name, error)
        tries = session.claims.tries(run.name)  # so that a new failure never looks like an old one
        failed = {"run": run.name, "error": error, "tries": tries, "traceback": details}
        atomic_files.write_json(path, failed)
    else:
        path.unlink(missing_ok=True)
    session.claims.release(run.name, how)


def _failure_file(root: Path, run: spec.Run) -> Path:
    return root / FAILED / f"{run.name}.json"


def _resolved(session: Session, run: spec.Run) -> ConfigDict:
    """Return a run's config with the weights of its teacher."""
    teacher = next((other for other in session.study.runs if other.name == run.teacher), None)
    if teacher is not None and not session.is_done(teacher):
        raise UserError(f"its teacher, the run {teacher.name}, failed: mend that one first")
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.teacher.weights = spec.teacher_weights(run, session.root, session.teachers)
    return config


def _set_devices(listed: Sequence[spec.Run]) -> None:
    """Start JAX with devices that divide every run's batch: it has the same for all of them."""
    import jax

    from kd_jax.runtime import devices

    shares = [run.config.batch_size // max(run.config.accumulate, 1) for run in listed]
    devices.prepare(0, math.gcd(*shares))
    jax.local_devices()


def _key(run: spec.Run, root: Path, teachers: Path | None) -> str | None:
    from kd_jax.training import cohort

    config = run.config.copy_and_resolve_references()
    try:
        with config.unlocked():
            config.teacher.weights = spec.teacher_weights(run, root, teachers)
        return cohort.key(config)
    except UserError:  # it says so when it is its turn
        return None
