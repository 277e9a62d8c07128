"""A run, from its config to its result: set-up, certificate, the loop, the last word.

The only module that writes to the workdir, and the only one that knows the order of things.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.distillation import state as state_lib
from kd_jax.runtime import atomic_files, processes, signals
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.training import (
    cohort,
    length,
    provenance,
    result,
    setup,
    sinks,
    teacher_check,
    teacher_source,
    workdir,
)
from kd_jax.training.callbacks import Callback, RunStart
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.given import NOTHING, Given
from kd_jax.training.listeners import Listeners
from kd_jax.training.loop import loop
from kd_jax.training.setup import RunSetup
from kd_jax.training.shared_checkpoints import SharedCheckpoints
from kd_jax.training.tracker import Member


def train(
    config: ConfigDict,
    directory: str | Path,
    stop: signals.StopRequest | None = None,
    given: Given = NOTHING,
) -> dict[str, Any]:
    """Run an experiment to its end, from wherever it was left.

    Args:
      config: as a file in `configs/` gives it.
      directory: of this run and no other. When it holds checkpoints, the newest is taken up; when
        the run is finished, it is only measured again.
      stop: how a command is asked to stop; None for a run that nobody can ask.
      given: objects from Python that the config cannot name.

    Returns:
      what is written to `result.json`.

    Raises:
      UserError: something about the input; then the directory is as it was. Or training cannot go
        on; then what was saved is kept.
      signals.StoppedError: it was asked to stop, and has saved.
    """
    return train_together([config], [directory], stop, given)[0]


def train_together(
    configs: Sequence[ConfigDict],
    directories: Sequence[str | Path],
    stop: signals.StopRequest | None = None,
    given: Given = NOTHING,
) -> list[dict[str, Any]]:
    """Run a cohort to its end: each as `train` would, and what they share is computed once.

    Each has its own directory, and may later go on alone or with others. Where they were left at
    different steps, those behind catch up first.

    Raises:
      UserError: as `train`; or they cannot train together.
      tracker.MemberError: one of them cannot go on; it names its directory.
      signals.StoppedError: they were asked to stop, and have saved.
    """
    places = [reachable(directory, "the workdir").resolve() for directory in directories]
    if len(set(places)) < len(places):
        raise UserError(
            f"each run needs its own workdir, but these are {', '.join(map(str, places))}"
        )
    for config in configs:
        setup.prepare(config)
        sinks.check(config)
    cohort.check(configs)
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(workdir.Lock(place)) for place in places]
        for config, place, lock in zip(configs, places, locks, strict=True):
            processes.on_first(functools.partial(_check_workdir, config, place, lock))
        runs = _build(configs, places, given)
        leader = Evaluator(runs[0])
        evaluators = [leader, *(Evaluator(run, leader) for run in runs[1:])]
        _say_what_is_odd(configs[0])
        certified = [teacher_check.certify(runs[0], leader, place) for place in places]
        members, states = [], []
        for number, place in enumerate(places):
            processes.on_first(
                functools.partial(_begin, runs[number], place, locks[number], certified[number])
            )
            checkpoints = SharedCheckpoints(
                place / workdir.CHECKPOINTS, configs[number].keep_checkpoints
            )
            members.append(Member(runs[number], evaluators[number], checkpoints, place))
            states.append(_first_state(members[-1], certified[number]))
        known = [processes.on_first((place / workdir.RESULT_FILE).exists) for place in places]
        stop = stop or signals.StopRequest()
        listeners = [
            stack.enter_context(_listeners(member, state, given.callbacks, stop))
            for member, state in zip(members, states, strict=True)
        ]
        trained, speed = _loop(members, states, stop, listeners)
        results = []
        for member, state, certificate, heard, is_known in zip(
            members, trained, certified, listeners, known, strict=True
        ):
            kept = result.state_to_keep(member, state)
            measures = result.measure(member, kept, int(state.step), certificate)
            measures |= result.rate(member, speed, len(members))
            result.write(member, kept, measures)
            if not is_known:  # of a finished run that is only measured again it was said
                heard.on_end(int(state.step), result.of_test(measures))
            results.append(measures)
            member.checkpoints.close()
        return results


def _build(configs: Sequence[ConfigDict], places: Sequence[Path], given: Given) -> list[RunSetup]:
    """Return the set-up of each run; what an earlier start recorded must be the same now."""
    first = setup.build(configs[0], given=given)
    teacher_source.check(first)
    runs = [first, *(setup.build(config, like=first, given=given) for config in configs[1:])]
    for place, run in zip(places, runs, strict=True):
        if run.features:
            logger.info("features: %s", "; ".join(map(str, run.features.pairs)))
        teacher_source.check_use(run, first)
        fingerprint, start = run.dataset.fingerprint, run.start_digest
        processes.on_first(functools.partial(provenance.check_data, place, fingerprint))
        processes.on_first(functools.partial(provenance.check_student, place, start))
        processes.on_first(functools.partial(provenance.check_code, place, run.code))
        answers = teacher_source.kind_of_answers(run)
        processes.on_first(functools.partial(provenance.check_answers, place, answers))
        examples = len(run.dataset.train)
        processes.on_first(functools.partial(length.check_steps_made, place, run.config, examples))
        if run.is_changed_by_devices:
            devices = len(run.devices) * processes.count()
            processes.on_first(functools.partial(provenance.check_devices, place, devices))
    return runs


def _check_workdir(config: ConfigDict, place: Path, lock: workdir.Lock) -> None:
    workdir.check(place, config, length_may_differ=True)
    length.check_schedule(place, config)
    if place.is_dir():
        lock.acquire()


def _begin(
    run: RunSetup, place: Path, lock: workdir.Lock, certified: dict[str, Any] | None
) -> None:
    """Make the workdir, or take it up."""
    lock.acquire()
    length.set_result_aside(place, run.config, len(run.dataset.train))
    workdir.create(place, run.config)
    if certified is not None:
        atomic_files.write_json(place / workdir.TEACHER_FILE, certified)


def _first_state(member: Member, certified: dict[str, Any] | None) -> state_lib.TrainState:
    """Return the state that this start goes on from, on every device, and record the start."""
    run = member.run
    initial = run.initial_state()
    restored = member.checkpoints.restore_newest(initial)
    state = initial if restored is None else restored
    processes.on_first(
        lambda: provenance.add_start(
            member.workdir,
            int(state.step),
            run.dataset.fingerprint,
            certified["sha256"] if certified else None,
            len(run.devices) * processes.count(),
            run.start_digest,
            run.code,
            teacher_source.kind_of_answers(run),
        )
    )
    return devices_lib.replicate(state, run.devices)


def _listeners(
    member: Member,
    state: state_lib.TrainState,
    callbacks: Sequence[Callback],
    stop: signals.StopRequest,
) -> Listeners:
    """Return who is told of a run, and tell them that it starts."""
    config, own = member.run.config, []
    if processes.is_first():
        own = sinks.of(config)
    listeners = Listeners([*callbacks, *own], stop)
    fields = MappingProxyType(config_lib.flatten(config))
    listeners.on_start(RunStart(member.workdir, fields, int(state.step), member.run.total_steps))
    return listeners


def _loop(
    members: Sequence[Member],
    states: Sequence[state_lib.TrainState],
    stop: signals.StopRequest,
    listeners: Sequence[Listeners],
) -> tuple[list[state_lib.TrainState], float | None]:
    """Train all to the end; those that were left behind catch up, then go on with the others."""
    trained, speed = list(states), None
    starts = sorted({int(state.step) for state in states})
    for start, until in zip(starts, [*starts[1:], None], strict=True):
        numbers = [n for n, state in enumerate(trained) if int(state.step) == start]
        active = tuple(trained[n] for n in numbers)
        heard = [listeners[n] for n in numbers]
        done, rate = loop([members[n] for n in numbers], active, stop, heard, until)
        speed = rate or speed
        for number, state in zip(numbers, done, strict=True):
            trained[number] = state
    return trained, speed


def _say_what_is_odd(config: ConfigDict) -> None:
    """Warn of what is allowed, to repeat what others did, and would mislead elsewhere."""
    if config.dataset.validation == "half_of_test":
        logger.warning("validation is a half of the test split: its best epoch is chosen on it")
    if config.teacher.weights and config.teacher.normalisation == "half":
        logger.warning(
            "the teacher sees pixels normalised by mean 0.5 and std 0.5, not by its own: its "
            "certificate below is what that leaves of it"
        )
