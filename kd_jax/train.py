"""A run, from its config to its result: set-up, the loop, the last word.

The only module that writes to the workdir, and the only one that knows the order of things.
"""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import kd_jax
from kd_jax import (
    batches,
    experiment,
    files,
    logbook,
    measure,
    models,
    parallel,
    steps,
    teachers,
    weights,
    workdir,
)
from kd_jax.checkpoint import Checkpoints
from kd_jax.console import logger
from kd_jax.errors import UserError

_MOST_IN_FLIGHT = 2  # steps dispatched and not yet finished: enough to keep devices busy


def train(config: ConfigDict, directory: str | Path) -> dict[str, Any]:
    """Run an experiment to its end, from wherever it was left.

    Args:
      config: as a file in `configs/` gives it.
      directory: of this run and no other. When it holds checkpoints, the newest is taken up; when
        the run is finished, it is only measured again.

    Returns:
      what is written to `result.json`.

    Raises:
      UserError: something about the input; then the directory is as it was.
    """
    directory = Path(directory).expanduser().resolve()
    workdir.check(directory, config)
    run = experiment.build(config)
    judge = measure.Judge(run)
    certified = _certify(run, judge, directory)

    workdir.create(directory, config)
    if certified is not None:
        files.write_json(directory / workdir.TEACHER_FILE, certified)
    checkpoints = Checkpoints(directory / workdir.CHECKPOINTS, config.keep_checkpoints)
    state = run.initial_state()
    if (step := checkpoints.latest_step()) is not None:
        state = checkpoints.restore(state, step)
    state = parallel.replicate(state, run.devices)
    state, speed = _loop(run, judge, state, checkpoints, directory)
    result = _result(run, judge, state, checkpoints, directory, speed, certified)
    checkpoints.close()
    return result


def _certify(
    run: experiment.Experiment, judge: measure.Judge, directory: Path
) -> dict[str, Any] | None:
    """Measure the teacher before anything is learnt from it, unless this run already did."""
    if run.teacher is None:
        return None
    card = run.teacher.card
    stored = files.read_json(directory / workdir.TEACHER_FILE)
    if stored is not None and stored.get("sha256") != card.sha256:
        raise UserError(
            f"the run in {directory} began with the teacher {stored.get('sha256')}, but "
            f"{run.config.teacher.weights} is {card.sha256}: give it the same weights, or a new "
            "--workdir"
        )
    if stored is not None and stored.get("data_fingerprint") == run.dataset.fingerprint:
        return stored
    logger.info("measuring the teacher %s on the test split", card.arch)
    certified = teachers.certificate(
        run.teacher, judge.measure_teacher("test"), len(run.dataset.test), run.dataset.fingerprint
    )
    logger.info(
        "teacher %s: top-1 %.2f %%, top-5 %.2f %%, sha256 %s",
        card.arch,
        certified["top1"],
        certified["top5"],
        card.sha256,
    )
    claimed = run.config.teacher.claimed_top1
    if claimed is None:
        claimed = card.claimed_top1
    teachers.check_claim(certified, claimed, run.config.teacher)
    return certified


def _loop(
    run: experiment.Experiment,
    judge: measure.Judge,
    state: steps.TrainState,
    checkpoints: Checkpoints,
    directory: Path,
) -> tuple[steps.TrainState, float | None]:
    """Train to the last step; return the state and the images a second."""
    config, dataset = run.config, run.dataset
    examples, batch_size = len(dataset.train), config.batch_size
    start = int(state.step)
    distils = config.distill.label_weight < 1
    train_step = parallel.pmap(
        steps.make_train_step(
            config, run.student, run.teacher.network if run.teacher else None, run.optimizer
        ),
        run.devices,
        (False, False, False, False, True),
        donate_argnums=0,
    )
    images = judge.images("train")
    labels = None
    if config.distill.label_weight > 0:
        labels = parallel.replicate(dataset.train.labels, run.devices)
    teacher_variables = judge.teacher_variables if distils else None

    evaluations = _evaluation_steps(run)
    log = logbook.Logbook(directory, start)
    progress = logbook.Progress(log, batch_size, run.total_steps, examples)
    logger.info(
        "%s: steps %d to %d, %.1f epochs of %d images, on %d %s device(s)",
        "resuming" if start else "starting",
        start,
        run.total_steps,
        run.total_steps * batch_size / examples,
        examples,
        len(run.devices),
        run.devices[0].platform,
    )

    in_flight: collections.deque[dict[str, jax.Array]] = collections.deque()
    for step in range(start + 1, run.total_steps + 1):
        batch = batches.batch_at(step - 1, batch_size, examples, config.seed)
        state, metrics = train_step(
            state, teacher_variables, images, labels, parallel.shard(batch, run.devices)
        )
        progress.flush()
        in_flight.append(metrics)
        if len(in_flight) > _MOST_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        if step == start + 1:
            jax.block_until_ready(metrics)  # the first step compiles: it is not timed
            progress.start(step)
        if step % config.log_every_steps == 0 or step == run.total_steps:
            progress.note(step, metrics)
        evaluates = step in evaluations
        if evaluates or step % config.checkpoint_every_steps == 0:
            jax.block_until_ready(metrics)
            progress.stop(step)
            measured = _validate(log, judge, state, step) if evaluates else None
            checkpoints.save(step, state, measured)
            progress.start(step)
    log.close()
    return state, progress.images_per_second


def _evaluation_steps(run: experiment.Experiment) -> set[int]:
    """Return the steps after which validation is measured: every so many epochs, and the last."""
    examples, every = len(run.dataset.train), run.config.eval_every_epochs
    epochs = run.total_steps * run.config.batch_size / examples
    return {
        batches.steps_in(k * every, run.config.batch_size, examples)
        for k in range(1, int(epochs / every) + 1)
    } | {run.total_steps}


def _validate(
    log: logbook.Logbook, judge: measure.Judge, state: steps.TrainState, step: int
) -> dict[str, float]:
    measured = judge.measure_student(state.variables, "val")
    log.write("val", step, measured)
    agrees = f", agreement {measured['agreement']:.2f} %" if "agreement" in measured else ""
    logger.info("step %d  validation top-1 %.2f %%%s", step, measured["top1"], agrees)
    return {"val_top1": measured["top1"], "val_nll": measured["nll"]}


def _result(
    run: experiment.Experiment,
    judge: measure.Judge,
    state: steps.TrainState,
    checkpoints: Checkpoints,
    directory: Path,
    images_per_second: float | None,
    certified: dict[str, Any] | None,
) -> dict[str, Any]:
    """Measure the finished student, and write `result.json` and the student itself."""
    config, dataset = run.config, run.dataset
    test = judge.measure_student(state.variables, "test")
    val = judge.measure_student(state.variables, "val")
    earlier = files.read_json(directory / workdir.RESULT_FILE) or {}
    if images_per_second is None:  # nothing was left to train
        images_per_second = earlier.get("images_per_second")
    result = {
        "student": config.student.arch,
        "teacher": run.teacher.card.arch if run.teacher else None,
        "teacher_top1": certified["top1"] if certified else None,
        "dataset": dataset.name,
        **{f"test_{name}": test[name] for name in ("top1", "top5", "nll", "ece")},
        "val_top1": val["top1"],
        "agreement": test.get("agreement"),
        "kl_to_teacher": test.get("kl_to_teacher"),
        "steps": run.total_steps,
        "epochs": round(run.total_steps * config.batch_size / len(dataset.train), 6),
        "images_per_second": images_per_second and round(images_per_second, 1),
        "params": models.count_params(run.student, dataset.image_shape),
        "madds": models.count_madds(run.student, dataset.image_shape),
        "best": _best(run, judge, checkpoints, state),
    }
    variables = jax.device_get(state.variables)
    card = weights.ModelCard(
        arch=config.student.arch,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        dataset=dataset.name,
        claimed_top1=test["top1"],
        source=f"a run of kd_jax {kd_jax.__version__}",
        sha256=weights.digest_of(variables),
    )
    weights.save(directory, card, variables)
    files.write_json(directory / workdir.RESULT_FILE, result)
    logger.info("finished: test top-1 %.2f %%, written to %s", test["top1"], directory)
    return result


def _best(
    run: experiment.Experiment,
    judge: measure.Judge,
    checkpoints: Checkpoints,
    state: steps.TrainState,
) -> dict[str, Any] | None:
    """Measure the checkpoint that was best on validation, which need not be the last."""
    step = checkpoints.best_step()
    if step is None:
        return None
    if step != int(state.step):
        state = parallel.replicate(checkpoints.restore(state, step), run.devices)
    val, test = (judge.measure_student(state.variables, split) for split in ("val", "test"))
    return {"step": step, "val_top1": val["top1"], "test_top1": test["top1"]}
