"""The loop of a run: calls, logs, validation, checkpoints, and every reason to stop early.

Of one run, or of a cohort: runs that look at the same batches and differ in what they make of them.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from kd_jax.data import sampler
from kd_jax.distill import state as state_lib
from kd_jax.kernels import forms
from kd_jax.runtime import devices, processes
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import DivergedError, UserError
from kd_jax.runtime.signals import StoppedError, StopRequest
from kd_jax.training import dispatch, metric_logger
from kd_jax.training.checkpoints import BEST_METRIC, DamagedError
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.metric_logger import MetricLogger, Throughput
from kd_jax.training.setup import RunSetup
from kd_jax.training.shared_checkpoints import SharedCheckpoints

_MOST_IN_FLIGHT = 2  # calls dispatched and not yet finished: enough to keep devices busy


@dataclasses.dataclass(frozen=True)
class Member:
    """A run in the loop, alone or in a cohort.

    Attributes:
      run: its parts.
      evaluator: of its student.
      checkpoints: its own.
      workdir: its own.
    """

    run: RunSetup
    evaluator: Evaluator
    checkpoints: SharedCheckpoints
    workdir: Path


class MemberError(UserError):
    """A member of a cohort cannot go on; the others can, without it."""

    def __init__(self, message: str, workdir: Path):
        super().__init__(message)
        self.workdir = workdir


def loop(
    members: Sequence[Member], states: state_lib.States, stop: StopRequest, until: int | None = None
) -> tuple[state_lib.States, float | None]:
    """Train to the last step, or until validation has not been better for `config.patience` times.

    Args:
      members: runs of the same data, views, teachers and length.
      states: of each, all at the same step.
      stop: how a command is asked to stop.
      until: the step to stop before the last, without a word.

    Returns:
      the states, and the images a second (None if no step was left).

    Raises:
      StoppedError: `stop` asked for it; the states are saved.
      MemberError: a loss, or an answer in validation, is no longer finite; the checkpoints are as
        they were.
      UserError: something cannot be written.
    """
    run = members[0].run
    config, examples = run.config, len(run.dataset.train)
    start, total = int(states[0].step), run.total_steps
    end = total if until is None else until
    evaluations = _evaluation_steps(run)

    def of_calls() -> Iterator[range]:
        every = range(start + 1, end + 1)
        marks = (step for step in every if _does_something(run, evaluations, step))
        return dispatch.calls(start, end, config.steps_per_call, marks)

    call = dispatch.prepare(
        [m.run for m in members], members[0].evaluator, members[0].workdir, stop
    )
    logs = [
        MetricLogger(member.workdir if processes.is_first() else None, start) for member in members
    ]
    validated = processes.on_first(
        lambda: [record["top1"] for record in logs[0].records if record["kind"] == "val"]
    )
    names = [""] if len(members) == 1 else [f"{member.workdir.name}: " for member in members]
    progress = [
        Throughput(log, config.batch_size, total, examples, name)
        for log, name in zip(logs, names, strict=True)
    ]
    logger.info(
        "%s%s: steps %d to %d, %.1f epochs of %d images, on %d %s device(s)",
        "resuming" if start else "starting",
        "" if len(members) == 1 else f" {len(members)} runs together",
        start,
        end,
        total * config.batch_size / examples,
        examples,
        len(run.devices) * processes.count(),
        run.devices[0].platform,
    )

    in_flight: collections.deque[tuple[state_lib.Metrics, jax.Array | None]] = collections.deque()
    feeder = dispatch.feeder(run, of_calls())
    try:
        for taken in of_calls():
            step = taken.stop
            if _is_out_of_patience(validated, config.patience):
                logger.info("validation was best %d times ago: training ends", config.patience)
                break
            states, metrics, votes = call(states, feeder.next())
            _for_each(members, progress, lambda its: its.flush())
            in_flight.append((metrics, votes))
            stops = stop.requested if votes is None else None
            if len(in_flight) > _MOST_IN_FLIGHT:
                finished, votes = in_flight.popleft()
                jax.block_until_ready(finished)
                if votes is not None and int(votes):
                    stops = "a signal to one of its processes"
            if taken.start == start:
                jax.block_until_ready(metrics)  # the first call compiles: it is not timed
                if run.devices[0].platform == "cpu":
                    logger.info("%s", forms.describe())
                for its in progress:
                    its.start(step)
                stop.has_unsaved_work(True)
            if step % config.log_every_steps == 0 or step == total:
                for its, own in zip(progress, metrics, strict=True):
                    its.note(step, own)
            evaluates = step in evaluations
            if evaluates or stops or step % config.checkpoint_every_steps == 0:
                jax.block_until_ready(metrics)
                _for_each(members, progress, lambda its, step=step: its.stop(step))  # type: ignore[misc]
                _for_each(members, metrics, lambda own, step=step: _check(step, own))  # type: ignore[misc]
                for number, (member, state) in enumerate(zip(members, states, strict=True)):
                    measured = None
                    if evaluates:
                        try:
                            measured = _validate(logs[number], names[number], member, state, step)
                        except DivergedError as error:  # and it is not saved
                            raise _MemberDivergedError(f"{error} at step {step}", member) from None
                    member.checkpoints.save(step, state, measured)
                    if measured and not number:
                        validated.append(measured[BEST_METRIC])
                for its in progress:
                    its.start(step)
            if stops and step < total:
                for member in members:
                    member.checkpoints.wait()
                raise StoppedError(f"stopped by {stops} at step {step}: the same command resumes")
        _for_each(members, progress, lambda its: its.flush())
    except _MemberDivergedError as diverged:
        member, state = diverged.member, states[members.index(diverged.member)]
        raise MemberError(
            f"{diverged}: {_last_good(member, state)}; try a lower config.learning_rate, "
            "config.optimizer.clip_norm=1, or a lower config.distill.temperature, with another "
            "--workdir",
            member.workdir,
        ) from None
    finally:
        feeder.close()
        for log in logs:
            log.close()
    for member in members:
        member.checkpoints.wait()
    stop.has_unsaved_work(False)
    return states, progress[0].images_per_second


class _MemberDivergedError(Exception):
    def __init__(self, message: str, member: Member):
        super().__init__(message)
        self.member = member


def _for_each(
    members: Sequence[Member], things: Sequence[Any], work: Callable[[Any], None]
) -> None:
    """Do something for every member; if a metric is not finite, say whose."""
    for member, thing in zip(members, things, strict=True):
        try:
            work(thing)
        except DivergedError as diverged:
            raise _MemberDivergedError(str(diverged), member) from None


def _check(step: int, metrics: Mapping[str, jax.Array]) -> None:
    metric_logger.check_finite(step, {name: float(value) for name, value in metrics.items()})


def _does_something(run: RunSetup, evaluations: set[int], step: int) -> bool:
    """Tell whether the loop logs, measures or saves after so many updates."""
    config = run.config
    return (
        step % config.log_every_steps == 0
        or step % config.checkpoint_every_steps == 0
        or step in evaluations
    )


def _is_out_of_patience(validated: list[float], patience: int) -> bool:
    """Tell whether the last `patience` validations were none better than the best before."""
    if not patience or not validated:
        return False
    return len(validated) - 1 - validated.index(max(validated)) >= patience


def _last_good(member: Member, state: state_lib.TrainState) -> str:
    """Measure the newest checkpoint, for the sentence that ends a run."""
    run, evaluator, checkpoints = member.run, member.evaluator, member.checkpoints
    checkpoints.wait()
    step = checkpoints.latest_step()
    if step is None:
        return "no checkpoint had been saved yet"
    try:
        good = devices.replicate(checkpoints.restore(state, step), run.devices)
    except DamagedError as error:
        return f"the checkpoint of step {step} is damaged ({error})"
    try:
        top1 = evaluator.measure_student(good.variables, "val")["top1"]
    except DivergedError as error:
        return f"at the checkpoint of step {step}, which is kept, {error} too"
    return f"the checkpoint of step {step} is kept, it reaches {top1:.2f} % on validation"


def _evaluation_steps(run: RunSetup) -> set[int]:
    """Return the steps after which validation is measured: every so many epochs, and the last."""
    examples, every = len(run.dataset.train), run.config.eval_every_epochs
    epochs = run.total_steps * run.config.batch_size / examples
    return {
        sampler.steps_in(k * every, run.config.batch_size, examples)
        for k in range(1, int(epochs / every) + 1)
    } | {run.total_steps}


def _validate(
    log: MetricLogger, name: str, member: Member, state: state_lib.TrainState, step: int
) -> dict[str, float]:
    measured = member.evaluator.measure_student(state.variables, "val")
    log.write("val", step, measured)
    agrees = f", agreement {measured['agreement']:.2f} %" if "agreement" in measured else ""
    logger.info("%sstep %d  validation top-1 %.2f %%%s", name, step, measured["top1"], agrees)
    return {BEST_METRIC: measured["top1"], "val_nll": measured["nll"]}
