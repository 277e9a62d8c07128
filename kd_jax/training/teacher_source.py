"""Where the teachers' logits of a step's views come from: the step, the host, or a recording.

*In the step*: networks of JAX, fused with the student's step. *On the host*: any other network,
between the program that makes the view and the one that teaches. *From a recording*: of an earlier
run. A run that makes a recording asks between the two programs as well, so that what it learns from
is what it records. (Nothing is called back from inside a program: the threads of XLA's CPU pool
that wait for the host could be those that the host's answer needs.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.distillation import augment
from kd_jax.distillation.inputs import Answered
from kd_jax.distillation.state import Constants
from kd_jax.distillation.teacher_step import make_question_step
from kd_jax.metrics import fidelity
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import processes
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import recorder as recorder_lib
from kd_jax.teachers import recording
from kd_jax.teachers.recording import Recording
from kd_jax.teachers.teacher import Teachers
from kd_jax.training import trajectory
from kd_jax.training.setup import RunSetup

# Losses that read softened probabilities, or the most probable class, and no logit for itself.
_ON_PROBABILITIES = ("forward_kl", "reverse_kl", "jensen_shannon", "hard_label")
_TIMED_STEP = 2  # of a start: the first two compile, or make what PyTorch makes once

AddAnswers = Callable[[int, Any], Answered]


def is_live(run: RunSetup) -> bool:
    """Return whether the teachers answer in the step, or are not asked in training at all."""
    options = run.config.teacher
    if run.teachers is None or run.config.distill.view == "fixed":
        return True
    return run.teachers.is_live and not (options.record or options.replay)


def kind_of_answers(run: RunSetup) -> str | None:
    """Return the form of the recorded answers that a run learns from; None: it asks.

    Of a run that records and of one that replays it is the same, and so are the answers.
    """
    header = _header_in_use(run)
    return None if header is None else str(header.form)


def _header_in_use(run: RunSetup) -> recording.Header | None:
    """Return the header of the recording that a run replays or makes; None without one."""
    if run.recording is not None:
        return run.recording.header
    return header_of(run) if run.config.teacher.record else None


def prepare(run: RunSetup, constants: Constants, clean: Callable[[str], np.ndarray]) -> AddAnswers:
    """Return the function that adds the teachers' logits to the batch of a step.

    Args:
      run: whose teachers are not live.
      constants: of its steps, on the devices.
      clean: the teachers' logits of a split, for a recording.

    Returns:
      `(step, batch)` to `Answered`, both `[devices, n, ...]`.

    Raises:
      UserError: there is no room for a recording, or it is another's; or several processes train.
    """
    options, teachers = run.config.teacher, run.teachers
    assert teachers is not None
    parts = run.config.accumulate
    if options.replay:
        recorded = run.recording
        assert recorded is not None
        logger.info("the teacher %s is replayed from %s", teachers.arch, recorded.directory)
        return lambda step, batch: Answered(
            batch, _to_devices(recorded.logits(step), run.devices, parts)
        )
    ask = _Asking(run, teachers, constants)
    if not options.record:
        return lambda step, batch: Answered(batch, devices_lib.place(ask(step, batch), run.devices))
    recorder = recorder_lib.Recorder(options.record, header_of(run), options.record_limit_gb)
    for split in ("val", "test"):
        recorder.add_clean(split, clean(split))
    return _Recording(run, ask, recorder)


def header_of(run: RunSetup) -> recording.Header:
    """Return the header of the recording that a run makes, or needs."""
    assert run.teachers is not None
    return recording.header_of(
        run.config,
        run.teachers,
        run.dataset.fingerprint,
        run.dataset.num_classes,
        run.total_steps,
        trajectory.VERSION,
    )


def check(run: RunSetup) -> None:
    """Raise `UserError` if the teachers cannot answer as the config says; writes nothing.

    That is: several processes, a recording of other views or too short, or one that cannot be made.
    """
    options = run.config.teacher
    if processes.count() > 1 and not is_live(run):
        raise UserError(
            f"{processes.count()} processes train together, expected one with a teacher that does "
            "not run in JAX, or with config.teacher.record or config.teacher.replay"
        )
    if options.record:
        _check_top(options.record_top, run.dataset.num_classes)
        recorder_lib.check(options.record, header_of(run), options.record_limit_gb)
    recorded = run.recording
    if recorded is None:
        return
    words = recorded.header.differences(header_of(run))
    if words:
        raise UserError(
            f"the recording in {recorded.directory} is of other views or another teacher "
            f"({'; '.join(words)}): take the values there, or record again"
        )
    steps = recorded.recorded_steps()
    if steps < run.total_steps:
        raise UserError(
            f"the recording in {recorded.directory} has {steps} steps, and this run needs "
            f"{run.total_steps}: take fewer, or let the run that records go on"
        )


def check_use(run: RunSetup, first: RunSetup) -> None:
    """Raise `UserError` if a run cannot learn from what is recorded of each answer.

    Args:
      run: alone, or of a cohort.
      first: of that cohort, which `check` has looked at.
    """
    header = _header_in_use(first)
    if header is None or not header.top:
        return
    distill = run.config.distill
    if distill.loss not in _ON_PROBABILITIES or distill.standardize_logits:
        raise UserError(
            f"of each answer the top {header.top} logits and the rest's mass are recorded, and "
            f"config.distill.loss={distill.loss}"
            f"{' with standardize_logits' if distill.standardize_logits else ''} reads every "
            f"logit: expected one of {', '.join(_ON_PROBABILITIES)}, or a recording of all logits "
            "(config.teacher.record_top=0)"
        )
    if distill.temperature != header.temperature:
        raise UserError(
            f"config.distill.temperature is {distill.temperature:g} in one run and "
            f"{header.temperature:g} in another, expected one: the mass below the top "
            f"{header.top} is recorded at one temperature"
        )


def _check_top(top: int, num_classes: int) -> None:
    if top >= num_classes:
        raise UserError(
            f"config.teacher.record_top is {top}, expected fewer than the {num_classes} classes, "
            "or 0 to record all logits"
        )


class _Asking:
    """Ask the teachers about a step's view, and log once at what rate they answer."""

    def __init__(self, run: RunSetup, teachers: Teachers, constants: Constants):
        self._run, self._teachers, self._constants = run, teachers, constants
        self._question = devices_lib.pmap(
            make_question_step(run.config, teachers.ask),
            run.devices,
            (False, True, False, False),
            splits_result=True,
        )
        self._count = 0

    def __call__(self, step: int, batch: Any) -> np.ndarray:
        """Return float32 logits `[devices, n, teachers, classes]`."""
        began = time.perf_counter()
        seed = np.int32(self._run.config.seed)
        parts = self._question(self._constants, batch, seed, np.int32(step))
        shape = parts[0].shape[:2]
        flat = [np.asarray(part).reshape(-1, *part.shape[2:]) for part in parts]
        logits = self._teachers.answer(flat)
        if self._count == _TIMED_STEP:
            logger.info(
                "the teacher %s answers between the steps, %.0f images/s",
                self._teachers.arch,
                len(logits) / (time.perf_counter() - began),
            )
        self._count += 1
        return logits.reshape(*shape, *logits.shape[1:])


class _Recording:
    """Ask, record, and give what was recorded."""

    def __init__(self, run: RunSetup, ask: _Asking, recorder: recorder_lib.Recorder):
        self._run, self._ask, self._recorder = run, ask, recorder
        self._on_disk: Recording = recorder.recording()
        self._is_first = True
        size = recording.size_in_bytes(self._on_disk.header)
        logger.info(
            "the teacher's answers are recorded in %s, %.2f GB in all",
            self._on_disk.directory,
            size / 1e9,
        )

    def __call__(self, step: int, batch: Any) -> Answered:
        parts, devices = self._run.config.accumulate, self._run.devices
        if self._is_first:
            self._fill_holes(step)
        if self._on_disk.has(step):
            logits = self._on_disk.logits(step)
        else:
            for earlier in self._recorder.missing_before(step):
                self._record(earlier, self._run.batch_of(earlier))
            logits = self._record(step, batch)
        return Answered(batch, _to_devices(logits, devices, parts))

    def _fill_holes(self, step: int) -> None:
        """Record the shards before that of `step` which are gone since an earlier start."""
        self._is_first = False
        steps = self._on_disk.header.steps_per_shard
        shards = recording.shards_in(self._on_disk.directory)
        missing = [e for e in range(step - step % steps) if e // steps not in shards]
        if missing:
            logger.warning("%d steps of the recording are gone: recording them again", len(missing))
        for earlier in missing:
            self._record(earlier, self._run.batch_of(earlier))

    def _record(self, step: int, batch: Any) -> np.ndarray:
        logits = devices_lib.unshard(self._ask(step, batch), self._run.config.accumulate)
        return self._recorder.add(step, logits)


def _to_devices(logits: np.ndarray, devices: list[jax.Device], parts: int) -> Any:
    return devices_lib.place(devices_lib.shard(logits, devices, parts), devices)


def ask_about(
    teachers: Teachers,
    variables: Any,
    images: Any,
    batch_size: int,
    lam: float | None = None,
) -> np.ndarray:
    """Return the logits of teachers that are not all live, float32 `[teachers, N, classes]`.

    Args:
      teachers: to be asked.
      variables: of each, on a device.
      images: uint8 `[N, H, W, C]`.
      batch_size: images at a time.
      lam: weight of each image in its mixture with its partner, see `fidelity.partners`; None: no
        mixture.

    Raises:
      UserError: they fail, or there is only a recording.
    """
    if teachers.is_recorded:
        raise UserError(
            f"the teacher {teachers.arch} is a recording, which has no answers to these images: "
            "give the teacher itself in config.teacher.weights"
        )

    @jax.jit
    def question(variables: Any, images: jax.Array, partners: jax.Array | None) -> Any:
        pixels = augment.to_pixels(images)
        if partners is not None:
            pixels = augment.mix(pixels, augment.to_pixels(partners), jnp.float32(lam))
        return teachers.ask(variables, pixels)

    host, count = np.asarray(images), len(images)
    answers = []
    for first in range(0, count, batch_size):
        index = np.minimum(np.arange(first, first + batch_size), count - 1)
        partners = None if lam is None else host[fidelity.partners(count)[index]]
        parts = question(variables, host[index], partners)
        kept = min(batch_size, count - first)
        answers.append(teachers.answer([np.asarray(part)[:kept] for part in parts]))
    return np.moveaxis(np.concatenate(answers), 1, 0)
