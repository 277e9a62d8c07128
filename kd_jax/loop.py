"""The loop of a run: steps, logs, validation, checkpoints, and every reason to stop early."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import (
    batches,
    experiment,
    fixed_view,
    logbook,
    losses,
    measure,
    models,
    parallel,
    processes,
    steps,
    streaming,
)
from kd_jax.checkpoint import BEST_METRIC, DamagedError
from kd_jax.console import logger
from kd_jax.errors import UserError
from kd_jax.interrupt import StoppedError, StopRequest
from kd_jax.shared_checkpoints import SharedCheckpoints

_MOST_IN_FLIGHT = 2  # steps dispatched and not yet finished: enough to keep devices busy


def loop(
    run: experiment.Experiment,
    judge: measure.Judge,
    state: steps.TrainState,
    checkpoints: SharedCheckpoints,
    workdir: Path,
    stop: StopRequest,
) -> tuple[steps.TrainState, float | None]:
    """Train to the last step, or until validation has not been better for `config.patience` times.

    Returns:
      the state, and the images a second (None if no step was left).

    Raises:
      StoppedError: `stop` asked for it; the state is saved.
      UserError: the loss is no longer finite, or something cannot be written; the checkpoints are
        as they were.
    """
    config, examples = run.config, len(run.dataset.train)
    start = int(state.step)
    train_step = _prepare_step(run, judge, workdir, stop)
    evaluations = _evaluation_steps(run)
    log = logbook.Logbook(workdir if processes.is_first() else None, start)
    validated = processes.on_first(
        lambda: [record["top1"] for record in log.records if record["kind"] == "val"]
    )
    progress = logbook.Progress(log, config.batch_size, run.total_steps, examples)
    logger.info(
        "%s: steps %d to %d, %.1f epochs of %d images, on %d %s device(s)",
        "resuming" if start else "starting",
        start,
        run.total_steps,
        run.total_steps * config.batch_size / examples,
        examples,
        len(run.devices) * processes.count(),
        run.devices[0].platform,
    )

    in_flight: collections.deque[tuple[dict[str, jax.Array], jax.Array | None]]
    in_flight = collections.deque()
    feeder = _feeder(run, start)
    try:
        for step in range(start + 1, run.total_steps + 1):
            if _is_out_of_patience(validated, config.patience):
                logger.info("validation was best %d times ago: training ends", config.patience)
                break
            state, metrics, votes = train_step(state, feeder.next())
            progress.flush()
            in_flight.append((metrics, votes))
            stops = stop.requested if votes is None else None
            if len(in_flight) > _MOST_IN_FLIGHT:
                finished, votes = in_flight.popleft()
                jax.block_until_ready(finished)
                if votes is not None and int(votes):
                    stops = "a signal to one of its processes"
            if step == start + 1:
                jax.block_until_ready(metrics)  # the first step compiles: it is not timed
                progress.start(step)
                stop.has_unsaved_work(True)
            if step % config.log_every_steps == 0 or step == run.total_steps:
                progress.note(step, metrics)
            evaluates = step in evaluations
            if evaluates or stops or step % config.checkpoint_every_steps == 0:
                jax.block_until_ready(metrics)
                progress.stop(step)
                logbook.check_finite(step, {name: float(metrics[name]) for name in metrics})
                measured = _validate(log, judge, state, step) if evaluates else None
                checkpoints.save(step, state, measured)
                validated += [measured[BEST_METRIC]] if measured else []
                progress.start(step)
            if stops and step < run.total_steps:
                checkpoints.wait()
                raise StoppedError(f"stopped by {stops} at step {step}: the same command resumes")
    except logbook.DivergedError as diverged:
        raise UserError(
            f"{diverged}: {_last_good(run, judge, state, checkpoints)}; try a lower "
            "config.learning_rate, config.optimizer.clip_norm=1, or a lower "
            "config.distill.temperature, with another --workdir"
        ) from None
    finally:
        feeder.close()
        log.close()
    checkpoints.wait()
    stop.has_unsaved_work(False)
    return state, progress.images_per_second


def _prepare_step(
    run: experiment.Experiment, judge: measure.Judge, workdir: Path, stop: StopRequest
) -> Callable[[steps.TrainState, Any], tuple[Any, Any, jax.Array | None]]:
    """Return `(state, batch) -> state, metrics, votes` over all devices of all processes.

    What every step reads is laid over the devices once. Several processes must leave in the same
    step, whichever of them was asked to: so each says in every step whether it was, and `votes`
    tells all of them. It is None where there is one process.
    """
    options = run.config.distill
    ensemble = run.teachers.ensemble if run.teachers else None
    step = steps.make_train_step(run.config, run.student, ensemble, run.optimizer)
    labels, logits = None, None
    variables: tuple[models.Variables, ...] = ()
    if options.label_weight > 0 or options.loss in losses.READ_LABELS:
        labels = parallel.replicate(run.dataset.train.labels, run.devices)
    if options.label_weight < 1 and options.view == "fixed":
        logits = parallel.replicate(fixed_view.teacher_logits(run, judge, workdir), run.devices)
    elif options.label_weight < 1:
        variables = judge.teacher_variables
    images: Any = judge.images("train") if run.resident else None
    constants = steps.Constants(images, labels, variables, logits)
    if processes.count() == 1:
        alone = parallel.pmap(step, run.devices, (False, False, True), donate_argnums=0)
        return lambda state, batch: (
            *alone(state, constants, batch),
            None,
        )

    def voting(
        state: steps.TrainState, constants: steps.Constants, batch: Any, vote: jax.Array
    ) -> tuple[steps.TrainState, dict[str, jax.Array], jax.Array]:
        return *step(state, constants, batch), jax.lax.pmax(vote, parallel.AXIS)

    together = parallel.pmap(voting, run.devices, (False, False, True, True), donate_argnums=0)

    def train_step(state: steps.TrainState, batch: Any) -> tuple[Any, Any, jax.Array]:
        vote = np.full(len(run.devices), stop.requested is not None, np.int32)
        return together(state, constants, batch, vote)

    return train_step


def _feeder(run: experiment.Experiment, start: int) -> streaming.Feeder:
    config, examples = run.config, len(run.dataset.train)
    return streaming.Feeder(
        lambda step: batches.batch_at(
            step, config.batch_size, examples, config.seed, config.mixup.partner
        ),
        None if run.resident else run.dataset.train.images,
        run.devices,
        partners=config.mixup.kind != "none",
        steps=range(start, run.total_steps),
    )


def _is_out_of_patience(validated: list[float], patience: int) -> bool:
    """Tell whether the last `patience` validations were none better than the best before."""
    if not patience or not validated:
        return False
    return len(validated) - 1 - validated.index(max(validated)) >= patience


def _last_good(
    run: experiment.Experiment,
    judge: measure.Judge,
    state: steps.TrainState,
    checkpoints: SharedCheckpoints,
) -> str:
    """Measure the newest checkpoint, for the sentence that ends a run."""
    checkpoints.wait()
    step = checkpoints.latest_step()
    if step is None:
        return "no checkpoint had been saved yet"
    try:
        good = parallel.replicate(checkpoints.restore(state, step), run.devices)
    except DamagedError as error:
        return f"the checkpoint of step {step} is damaged ({error})"
    top1 = judge.measure_student(good.variables, "val")["top1"]
    return f"the checkpoint of step {step} is kept, it reaches {top1:.2f} % on validation"


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
    return {BEST_METRIC: measured["top1"], "val_nll": measured["nll"]}
