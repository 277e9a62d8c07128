"""A run, from its config to its result: set-up, certificate, the loop, the last word.

The only module that writes to the workdir, and the only one that knows the order of things.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import kd_jax
from kd_jax import models
from kd_jax.data import class_names
from kd_jax.distill import state as state_lib
from kd_jax.runtime import atomic_files, processes, signals
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import DivergedError, UserError, reachable
from kd_jax.training import cohort, provenance, setup, teacher_check, workdir
from kd_jax.training.checkpoints import DamagedError
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.loop import loop
from kd_jax.training.shared_checkpoints import SharedCheckpoints
from kd_jax.training.tracker import Member
from kd_jax.weights import saved_network


def train(
    config: ConfigDict, directory: str | Path, stop: signals.StopRequest | None = None
) -> dict[str, Any]:
    """Run an experiment to its end, from wherever it was left.

    Args:
      config: as a file in `configs/` gives it.
      directory: of this run and no other. When it holds checkpoints, the newest is taken up; when
        the run is finished, it is only measured again.
      stop: how a command is asked to stop; None for a run that nobody can ask.

    Returns:
      what is written to `result.json`.

    Raises:
      UserError: something about the input; then the directory is as it was. Or training cannot go
        on; then what was saved is kept.
      signals.StoppedError: it was asked to stop, and has saved.
    """
    return train_together([config], [directory], stop)[0]


def train_together(
    configs: Sequence[ConfigDict],
    directories: Sequence[str | Path],
    stop: signals.StopRequest | None = None,
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
    cohort.check(configs)
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(workdir.Lock(place)) for place in places]
        for config, place, lock in zip(configs, places, locks, strict=True):
            processes.on_first(functools.partial(_check_workdir, config, place, lock))
        first = setup.build(configs[0])
        runs = [first, *(setup.build(config, like=first) for config in configs[1:])]
        fingerprint = first.dataset.fingerprint
        for place, run in zip(places, runs, strict=True):
            processes.on_first(functools.partial(provenance.check_data, place, fingerprint))
            processes.on_first(functools.partial(provenance.check_student, place, run.start_digest))
            if run.is_changed_by_devices:
                devices = len(run.devices) * processes.count()
                processes.on_first(functools.partial(provenance.check_devices, place, devices))
        leader = Evaluator(first)
        evaluators = [leader, *(Evaluator(run, leader) for run in runs[1:])]
        _say_what_is_odd(configs[0])
        certified = [teacher_check.certify(first, leader, place) for place in places]
        members, states = [], []
        for number, place in enumerate(places):
            processes.on_first(
                functools.partial(_begin, configs[number], place, locks[number], certified[number])
            )
            checkpoints = SharedCheckpoints(
                place / workdir.CHECKPOINTS, configs[number].keep_checkpoints
            )
            members.append(Member(runs[number], evaluators[number], checkpoints, place))
            states.append(_first_state(members[-1], certified[number]))
        trained, speed = _loop(members, states, stop or signals.StopRequest())
        results = []
        for member, state, certificate in zip(members, trained, certified, strict=True):
            results.append(_result(member, state, speed, certificate, len(members)))
            member.checkpoints.close()
        return results


def _check_workdir(config: ConfigDict, place: Path, lock: workdir.Lock) -> None:
    workdir.check(place, config)
    if place.is_dir():
        lock.acquire()


def _begin(
    config: ConfigDict, place: Path, lock: workdir.Lock, certified: dict[str, Any] | None
) -> None:
    """Make the workdir, or take it up."""
    lock.acquire()
    workdir.create(place, config)
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
        )
    )
    return devices_lib.replicate(state, run.devices)


def _loop(
    members: Sequence[Member], states: Sequence[state_lib.TrainState], stop: signals.StopRequest
) -> tuple[list[state_lib.TrainState], float | None]:
    """Train all to the end; those that were left behind catch up, then go on with the others."""
    trained, speed = list(states), None
    starts = sorted({int(state.step) for state in states})
    for start, until in zip(starts, [*starts[1:], None], strict=True):
        numbers = [n for n, state in enumerate(trained) if int(state.step) == start]
        active = tuple(trained[n] for n in numbers)
        done, rate = loop([members[n] for n in numbers], active, stop, until)
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


def _result(
    member: Member,
    state: state_lib.TrainState,
    images_per_second: float | None,
    certified: dict[str, Any] | None,
    together: int,
) -> dict[str, Any]:
    """Measure the finished student, and write `result.json` and the student itself."""
    run, evaluator, checkpoints, directory = (
        member.run, member.evaluator, member.checkpoints, member.workdir
    )  # fmt: skip
    config, dataset, trained = run.config, run.dataset, int(state.step)
    if config.patience and (step := checkpoints.best_step()) is not None:
        try:
            state = devices_lib.replicate(checkpoints.restore(state, step), run.devices)
        except DamagedError as error:
            logger.warning("the best checkpoint is damaged (%s): the last is kept instead", error)
    test = evaluator.measure_student(state.variables, "test")
    val = evaluator.measure_student(state.variables, "val")
    earlier = (
        processes.on_first(lambda: atomic_files.read_json(directory / workdir.RESULT_FILE)) or {}
    )
    if images_per_second is None:  # nothing was left to train
        images_per_second = earlier.get("images_per_second")
        together = earlier.get("trained_together", together)
    result = {
        "student": config.student.arch,
        "teacher": run.teachers.arch if run.teachers else None,
        "teacher_top1": certified["top1"] if certified else None,
        "dataset": dataset.name,
        **{f"test_{name}": test[name] for name in ("top1", "top5", "nll", "ece")},
        "val_top1": val["top1"],
        "agreement": test.get("agreement"),
        "agreement_top5": test.get("agreement_top5"),
        "kl_to_teacher": test.get("kl_to_teacher"),
        "steps": trained,
        "epochs": round(trained * config.batch_size / len(dataset.train), 6),
        "images_per_second": images_per_second and round(images_per_second, 1),
        "trained_together": together,
        "params": models.count_params(run.student, dataset.image_shape),
        "madds": models.count_madds(run.student, dataset.image_shape),
        "best": _best(member, state),
    }
    variables = jax.device_get(state.variables)
    digest = saved_network.digest_of(variables)
    card = saved_network.ModelCard(
        arch=config.student.arch,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        mean=run.student.mean,
        std=run.student.std,
        dataset=dataset.name,
        claimed_top1=test["top1"],
        source=f"a run of kd_jax {kd_jax.__version__}",
        sha256=digest,
        arrays_sha256=digest,
        class_names=class_names.known(config.dataset, dataset.num_classes),
        certificate={
            **{name: test[name] for name in ("top1", "top5", "nll", "ece")},
            "examples": len(dataset.test),
            "data_fingerprint": dataset.fingerprint,
        },
    )

    def write() -> None:
        saved_network.save(directory, card, variables)
        atomic_files.write_json(directory / workdir.RESULT_FILE, result)

    processes.on_first(write)
    logger.info("finished: test top-1 %.2f %%, written to %s", test["top1"], directory)
    return result


def _best(member: Member, state: state_lib.TrainState) -> dict[str, Any] | None:
    """Measure the checkpoint that was best on validation, which need not be the last."""
    run, evaluator, checkpoints = member.run, member.evaluator, member.checkpoints
    step = checkpoints.best_step()
    if step is None:
        return None
    if step != int(state.step):
        try:
            state = devices_lib.replicate(checkpoints.restore(state, step), run.devices)
        except DamagedError as error:
            logger.warning("the best checkpoint, of step %d, is damaged (%s)", step, error)
            return None
    try:
        val, test = (evaluator.measure_student(state.variables, split) for split in ("val", "test"))
    except DivergedError as error:
        logger.warning("the best checkpoint, of step %d, is left out: %s", step, error)
        return None
    return {"step": step, "val_top1": val["top1"], "test_top1": test["top1"]}
