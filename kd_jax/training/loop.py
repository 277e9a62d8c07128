"""The loop of a run or of a cohort: calls of the devices, and what is done between them.

A cohort is several runs that look at the same batches and differ in what they make of them.
`Cadence` knows after which steps there is something to do, a `Tracker` for each run does it, and
`dispatch` makes the calls.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax

from kd_jax.distillation import state as state_lib
from kd_jax.kernels import forms
from kd_jax.runtime import console, processes
from kd_jax.runtime.console import logger
from kd_jax.runtime.signals import StoppedError, StopRequest
from kd_jax.training import dispatch, length, view_images
from kd_jax.training.cadence import Cadence
from kd_jax.training.compile_times import FirstCall
from kd_jax.training.early_stopping import Patience
from kd_jax.training.listeners import Listeners
from kd_jax.training.setup import RunSetup
from kd_jax.training.time_left import COMPILATION, TimeLeft
from kd_jax.training.tracker import Member, MemberDivergedError, Tracker, explain_divergence


def loop(
    members: Sequence[Member],
    states: state_lib.States,
    stop: StopRequest,
    listeners: Sequence[Listeners],
    until: int | None = None,
) -> tuple[state_lib.States, float | None]:
    """Train to the last step, or until validation has not been better for `config.patience` times.

    Args:
      members: runs of the same data, views, teachers and length.
      states: of each, all at the same step.
      stop: how a command is asked to stop.
      listeners: to each run.
      until: the step to stop before the last, without a word.

    Returns:
      the states, and the images a second (None if no step was left).

    Raises:
      StoppedError: `stop` asked for it; the states are saved.
      MemberError: a loss, or an answer in validation, is no longer finite; the checkpoints are as
        they were.
      UserError: something cannot be written.
    """
    run, cadence = members[0].run, Cadence.of(members[0].run)
    start = int(states[0].step)
    end = cadence.total_steps if until is None else until
    runs = [member.run for member in members]
    call = dispatch.prepare(runs, members[0].evaluator, members[0].workdir, stop)
    names = [""] if len(members) == 1 else [f"{member.workdir.name}: " for member in members]
    work = TimeLeft(cadence, start, end, len(members), run.validations_at_the_end)
    trackers = [
        Tracker(member, cadence, start, name, heard, work)
        for member, name, heard in zip(members, names, listeners, strict=True)
    ]
    patience = Patience(run.config.patience, processes.on_first(lambda: trackers[0].earlier_top1))
    _announce(run, len(members), start, end)
    in_flight = dispatch.InFlight(stop)
    feeder = run.feeder(cadence.calls(start, end))
    sizes: set[int] = set()  # of the calls whose programs are compiled
    metrics: Any = ()
    try:
        for steps in cadence.calls(start, end):
            step = steps.stop
            if patience.is_over():
                break
            begins_program = steps.start == run.quantize_from
            if begins_program:
                logger.info("from step %d on the student computes with int8's numbers", steps.start)
                sizes.clear()
            if len(steps) in sizes:
                states, metrics, votes = call(states, feeder.next(), steps)
            else:  # this call compiles: it is no part of the rate
                _stop_timing(trackers, steps.start, metrics)
                first = FirstCall(runs, len(steps), quantized=run.is_quantized(steps.start))
                with first.measured():
                    states, metrics, votes = call(states, feeder.next(), steps)
                    jax.block_until_ready(metrics)
                work.add(COMPILATION, first.seconds)
                if not sizes and run.devices[0].platform == "cpu":
                    logger.info("%s", forms.describe())
                sizes.add(len(steps))
                if steps.start == 0:
                    for member, heard in zip(members, listeners, strict=True):
                        heard.on_images(0, functools.partial(view_images.of, member.run))
                for tracker in trackers:
                    if begins_program:
                        tracker.begin_program()
                    tracker.start_timing(step)
                stop.has_unsaved_work(True)
            for tracker in trackers:
                tracker.flush()
            stop_reason = in_flight.add(metrics, votes)
            if cadence.should_log(step):
                for tracker, scalars in zip(trackers, metrics, strict=True):
                    tracker.note(step, scalars)
            if cadence.should_save(step) or stop_reason:
                top1 = _save(trackers, step, states, metrics)
                if top1 is not None:
                    patience.add(top1)
            if stop_reason and step < cadence.total_steps:
                for tracker in trackers:
                    tracker.wait()
                raise StoppedError(
                    f"stopped by {stop_reason} at step {step}: the same command resumes"
                )
        for tracker in trackers:
            tracker.flush()
    except MemberDivergedError as diverged:
        raise explain_divergence(diverged, states[members.index(diverged.member)]) from None
    finally:
        feeder.close()
        console.end_progress()
        for tracker in trackers:
            tracker.close()
    for tracker in trackers:
        tracker.wait()
    stop.has_unsaved_work(False)
    return states, trackers[0].images_per_second


def _announce(run: RunSetup, members: int, start: int, end: int) -> None:
    """Log what is about to be trained."""
    logger.info(
        "%s%s: steps %d to %d, %s, on %d %s device(s)",
        "resuming" if start else "starting",
        "" if members == 1 else f" {members} runs together",
        start,
        end,
        length.in_words(run.config, len(run.dataset.train)),
        len(run.devices) * processes.count(),
        run.devices[0].platform,
    )


def _stop_timing(trackers: Sequence[Tracker], step: int, metrics: Any) -> None:
    """Wait for the steps in flight, and leave what follows out of the rate."""
    jax.block_until_ready(metrics)
    for tracker in trackers:
        tracker.stop_timing(step)


def _save(
    trackers: Sequence[Tracker], step: int, states: state_lib.States, metrics: state_lib.Metrics
) -> float | None:
    """Save all members, none before the metrics of all are known to be finite.

    Returns:
      the first member's top-1 on validation in percent, or None where it was not measured.
    """
    _stop_timing(trackers, step, metrics)
    for tracker, scalars in zip(trackers, metrics, strict=True):
        tracker.check(step, scalars)
    top1 = [tracker.save(step, state) for tracker, state in zip(trackers, states, strict=True)]
    for tracker in trackers:
        tracker.start_timing(step)
    return top1[0]
