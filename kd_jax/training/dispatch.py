"""From the step of one device to a call over all devices of all processes, and what it is fed."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import config as config_lib
from kd_jax.data import prefetch
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.runtime import devices, processes
from kd_jax.runtime.console import logger
from kd_jax.runtime.signals import StopRequest
from kd_jax.training import fixed_view, teacher_source
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.setup import RunSetup

_MOST_IN_FLIGHT = 2  # calls dispatched and not yet finished: enough to keep devices busy

Call = Callable[
    [state_lib.States, Any, range], tuple[state_lib.States, state_lib.Metrics, jax.Array | None]
]


def calls(start: int, end: int, size: int, must_end: Iterable[int]) -> Iterator[range]:
    """Cut the steps from `start` to `end` into calls of `size` steps or of one.

    No call goes on beyond a step after which something is to be done.

    Args:
      start: number of updates made.
      end: after so many nothing is left.
      size: of a call; where it does not fit, single steps fill the gap, so two programs do for all.
      must_end: numbers of updates, in order, after which the loop has something to do.
    """
    marks = iter(must_end)
    mark, step = start, start
    while step < end:
        while mark <= step:
            mark = next(marks, end)
        count = size if step + size <= min(mark, end) else 1
        yield range(step, step + count)
        step += count


def prepare(
    runs: Sequence[RunSetup], evaluator: Evaluator, workdir: Path, stop: StopRequest
) -> Call:
    """Return `(states, batch, steps) -> states, metrics, votes` of runs that train together.

    What every step reads is laid over the devices once. Several processes must leave in the same
    step, whichever of them was asked to: so each says in every call whether it was, and `votes`
    tells all of them. It is None where there is one process.

    Args:
      runs: of the same data, views and teachers.
      evaluator: of the first.
      workdir: of the first, for the kept logits of a fixed view.
      stop: how this process is asked to stop.

    Raises:
      UserError: see `teacher_source.prepare`.
    """
    first = runs[0]
    ensemble = first.teachers.ensemble if first.teachers else None
    options = [run.config.distill for run in runs]
    labels, logits = None, None
    variables: tuple[Any, ...] = ()
    if any(config_lib.reads_labels(run.config) for run in runs):
        labels = devices.replicate(first.dataset.train.labels, first.devices)
    if any(distill.label_weight < 1 for distill in options):
        if options[0].view == "fixed":
            kept = fixed_view.teacher_logits(first, evaluator, workdir)
            logits = devices.replicate(kept, first.devices)
        else:
            variables = evaluator.teacher_variables
    images: Any = evaluator.images("train") if first.resident else None
    constants = state_lib.Constants(images, labels, variables, logits)
    distils = any(distill.label_weight < 1 for distill in options)
    add_answers = None
    if distils and not teacher_source.is_live(first):
        add_answers = teacher_source.prepare(first, constants, evaluator.members_logits)
        constants = constants._replace(teacher_variables=())
    elif variables:
        assert first.teachers is not None
        logger.info("the teacher %s answers in the step", first.teachers.arch)

    def step_of(quantized: bool) -> Callable[..., tuple[Any, Any]]:
        specs = [run.spec(quantized=quantized) for run in runs]
        return several(step_lib.make_cohort_step(specs, ensemble))

    if processes.count() == 1:

        @functools.cache
        def program(quantized: bool) -> Callable[..., Any]:
            step = step_of(quantized)
            return devices.pmap(step, first.devices, (False, False, True), donate_argnums=0)

        def call_alone(states: state_lib.States, batch: Any, steps: range) -> tuple[Any, Any, None]:
            if add_answers is not None:
                batch = add_answers(steps.start, batch)
            return *program(first.is_quantized(steps.start))(states, constants, batch), None

        return call_alone

    @functools.cache
    def together(quantized: bool) -> Callable[..., Any]:
        step = step_of(quantized)

        def voting(
            states: state_lib.States, constants: state_lib.Constants, batch: Any, vote: jax.Array
        ) -> tuple[state_lib.States, state_lib.Metrics, jax.Array]:
            return *step(states, constants, batch), jax.lax.pmax(vote, devices.AXIS)

        return devices.pmap(voting, first.devices, (False, False, True, True), donate_argnums=0)

    def call(states: state_lib.States, batch: Any, steps: range) -> tuple[Any, Any, jax.Array]:
        vote = np.full(len(first.devices), stop.requested is not None, np.int32)
        return together(first.is_quantized(steps.start))(states, constants, batch, vote)

    return call


class InFlight:
    """The calls that were dispatched and may not be finished yet, at most two."""

    def __init__(self, stop: StopRequest):
        """Begin with none.

        Args:
          stop: how this process is asked to stop.
        """
        self._stop = stop
        self._calls: collections.deque[tuple[state_lib.Metrics, jax.Array | None]] = (
            collections.deque()
        )

    def add(self, metrics: state_lib.Metrics, votes: jax.Array | None) -> str | None:
        """Add a call, and wait for the oldest where there are too many.

        Args:
          metrics: that the call returned.
          votes: as `prepare` has them.

        Returns:
          why training is to stop, or None. One process is asked directly; several agree by the
          votes of a call that is finished, so that all leave in the same step.
        """
        self._calls.append((metrics, votes))
        reason = self._stop.requested if votes is None else None
        if len(self._calls) > _MOST_IN_FLIGHT:
            finished, votes = self._calls.popleft()
            jax.block_until_ready(finished)
            if votes is not None and int(votes):
                reason = "a signal to one of its processes"
        return reason


def several(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Return `step` for a `prefetch.Stacked` of batches too: one after another, in one program.

    Its metrics are those of the last: they are means over the steps since the last that was logged.
    """

    def call(states: Any, constants: Any, batch: Any) -> tuple[Any, Any]:
        if not isinstance(batch, prefetch.Stacked):
            return step(states, constants, batch)
        states, metrics = jax.lax.scan(
            lambda states, one: step(states, constants, one), states, batch.batches
        )
        return states, jax.tree.map(lambda each: each[-1], metrics)

    return call
