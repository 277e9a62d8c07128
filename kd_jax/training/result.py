"""The result of a finished run: its student measured, and written with `result.json`."""

from __future__ import annotations

from typing import Any

import jax

import kd_jax
from kd_jax import models
from kd_jax.distillation import state as state_lib
from kd_jax.runtime import atomic_files, processes, text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import DivergedError
from kd_jax.training import saved_student, workdir
from kd_jax.training.checkpoints import DamagedError
from kd_jax.training.tracker import Member
from kd_jax.weights import saved_network

_CERTIFIED = ("top1", "top5", "nll", "ece")  # measures of the test split that a network carries


def state_to_keep(member: Member, state: state_lib.TrainState) -> state_lib.TrainState:
    """Return the state that the run's student is taken from.

    The last one; where training may end early, the best on validation.
    """
    step = member.checkpoints.best_step() if member.run.config.patience else None
    if step is None:
        return state
    try:
        return member.restore(state, step)
    except DamagedError as error:
        logger.warning("the best checkpoint is damaged (%s): the last is kept instead", error)
        return state


def measure(
    member: Member,
    state: state_lib.TrainState,
    steps: int,
    certificate: dict[str, Any] | None,
) -> dict[str, Any]:
    """Measure the finished student on test and validation; return `result.json` without the rate.

    Args:
      member: the run.
      state: of the student that is kept.
      steps: that were trained.
      certificate: of its teacher.
    """
    run, config, dataset = member.run, member.run.config, member.run.dataset
    test = member.evaluator.measure_student(state.variables, "test")
    val = member.evaluator.measure_student(state.variables, "val")
    return {
        "student": config.student.arch,
        "teacher": run.teachers.arch if run.teachers else None,
        "teacher_top1": certificate.get("top1") if certificate else None,
        "dataset": dataset.name,
        **{f"test_{name}": test.get(name) for name in _CERTIFIED},
        "val_top1": val.get("top1"),
        "agreement": test.get("agreement"),
        "agreement_top5": test.get("agreement_top5"),
        "kl_to_teacher": test.get("kl_to_teacher"),
        "steps": steps,
        "epochs": round(steps * config.batch_size / len(dataset.train), 6),
        "images_per_second": None,
        "trained_together": None,
        "params": models.count_params(run.student, dataset.image_shape),
        "madds": models.count_madds(run.student, dataset.image_shape),
        "best": _best(member, state),
    }


def of_test(result: dict[str, Any]) -> dict[str, float]:
    """Return from `result.json` what was measured on the test split, by its names without it."""
    named = {name.removeprefix("test_"): value for name, value in result.items()}
    names = (*_CERTIFIED, "agreement", "agreement_top5", "kl_to_teacher")
    return {name: named[name] for name in names if named.get(name) is not None}


def rate(member: Member, images_per_second: float | None, together: int) -> dict[str, Any]:
    """Return the rate of training for `result.json`; the earlier one if nothing was left to train.

    Args:
      member: the run.
      images_per_second: of this start; None if no step was left.
      together: how many runs trained together in it.
    """
    if images_per_second is None:
        path = member.workdir / workdir.RESULT_FILE
        earlier = processes.on_first(lambda: atomic_files.read_json(path)) or {}
        images_per_second = earlier.get("images_per_second")
        together = earlier.get("trained_together", together)
    return {
        "images_per_second": images_per_second and round(images_per_second, 1),
        "trained_together": together,
    }


def write(member: Member, state: state_lib.TrainState, result: dict[str, Any]) -> None:
    """Write the student, with its certificate, and `result.json`."""
    run, dataset, directory = member.run, member.run.dataset, member.workdir
    variables = jax.device_get(state.variables)
    measures = {name: result[f"test_{name}"] for name in _CERTIFIED}
    certificate = {
        **measures,
        "examples": len(dataset.test),
        "data_fingerprint": dataset.fingerprint,
        "test_fingerprint": dataset.test_digest,
    }
    card = saved_student.card(
        run,
        variables,
        f"a run of kd_jax {kd_jax.__version__}",
        claimed_top1=measures["top1"],
        certificate=certificate if measures["top1"] is not None else None,
        quantize=run.config.student.quantize,
    )

    def write_files() -> None:
        saved_network.save(directory, card, variables)
        atomic_files.write_json(directory / workdir.RESULT_FILE, result)

    processes.on_first(write_files)
    name, value = ("top-1", measures["top1"])
    if value is None:
        name, value = ("agreement", result["agreement"])
    of_few = text_tables.of_few(len(dataset.test))
    logger.info("finished: test %s %.2f %%%s, written to %s", name, value, of_few, directory)


def _best(member: Member, state: state_lib.TrainState) -> dict[str, Any] | None:
    """Measure the checkpoint that was best on validation, which need not be the last."""
    step = member.checkpoints.best_step()
    if step is None:
        return None
    if step != int(state.step):
        try:
            state = member.restore(state, step)
        except DamagedError as error:
            logger.warning("the best checkpoint, of step %d, is damaged (%s)", step, error)
            return None
    try:
        val, test = (
            member.evaluator.measure_student(state.variables, split) for split in ("val", "test")
        )
    except DivergedError as error:
        logger.warning("the best checkpoint, of step %d, is left out: %s", step, error)
        return None
    return {"step": step, "val_top1": val.get("top1"), "test_top1": test.get("top1")}
