"""What a run takes on this machine, measured for some seconds: `kd_jax.main --plan_measure`.

The very step of the run is compiled and made, on its data, under its teachers; then the student is
measured on a part of validation. Nothing is written but to the compilation cache.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.distillation import state as state_lib
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import processor, signals
from kd_jax.runtime.console import logger
from kd_jax.training import dispatch, setup
from kd_jax.training.cadence import Cadence
from kd_jax.training.compile_times import FirstCall
from kd_jax.training.evaluator import Evaluator, Predictor
from kd_jax.training.setup import RunSetup
from kd_jax.training.time_left import VALIDATION, TimeLeft, duration

SECONDS = 10.0  # of measuring, after what compiles
_LEAST_CALLS = 2  # that are timed, however long they take
_VALIDATED = 4  # batches of validation that are timed, at most


def rows(config: ConfigDict, seconds: float = SECONDS) -> list[list[str]]:
    """Return what was measured, as rows of the plan's table.

    Args:
      config: of the run; its data and its teachers must be there.
      seconds: to measure for, after compiling.

    Raises:
      UserError: see `setup.build`.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.teacher.record = ""  # the views that are asked about here are no run's
        config.update_from_flattened_dict(config_lib.unread(config))
    run = setup.build(config)
    cadence, evaluator = Cadence.of(run), Evaluator(run)
    parts = {
        "": range(run.quantize_from),
        ", with int8's numbers": range(run.quantize_from, run.total_steps),
    }
    timed: list[list[str]] = []
    compiling = training = 0.0
    variables: Any = None
    with tempfile.TemporaryDirectory() as place:
        call = dispatch.prepare([run], evaluator, Path(place), signals.StopRequest())
        for words, steps in parts.items():
            if not steps:
                continue
            first, seconds_per_step, variables = _time_steps(run, cadence, call, steps, seconds)
            compiling += first.seconds
            training += len(steps) * seconds_per_step
            rate = run.config.batch_size / seconds_per_step
            from_cache = ", from the compilation cache" if first.from_cache else ""
            timed += [
                [f"measured: images/s in training{words}", f"{rate:,.0f}"],
                [
                    f"measured: the first call of the step{words}",
                    f"{duration(first.seconds)}{from_cache}",
                ],
            ]
    validation = _time_validation(run, evaluator, variables)
    left = TimeLeft(cadence, at_the_end=run.validations_at_the_end)
    left.add(VALIDATION, validation)
    total = compiling + training + left.seconds(0, 0.0)
    count = cadence.validations_in(0, run.total_steps)
    return [
        *timed,
        [f"measured: each of {count} validations", f"{validation:.2g} s"],
        _memory_row(run.devices),
        ["time of the whole run, by these", duration(total)],
    ]


def machine(devices: list[jax.Device]) -> str:
    """Return this machine's devices in words."""
    first = devices[0]
    if first.platform != "cpu":
        return f"{len(devices)} {first.device_kind}"
    cores = processor.cores()
    return f"{len(devices)} device(s) of {cores} CPU core(s), processor {processor.describe()}"


def _time_steps(
    run: RunSetup, cadence: Cadence, call: dispatch.Call, steps: range, seconds: float
) -> tuple[FirstCall, float, Any]:
    """Return the first call, the seconds of a step, and the student's variables after it.

    Of the steps of one program, by some of them.
    """
    size = min(cadence.steps_per_call, len(steps))
    calls = [range(step, step + size) for step in steps[: len(steps) - size + 1 : size]]
    states: state_lib.States = (devices_lib.replicate(run.initial_state(), run.devices),)
    feeder = run.feeder(calls)
    try:
        first = FirstCall([run], size, quantized=run.is_quantized(steps.start))
        with first.measured():
            states, metrics, _ = call(states, feeder.next(), calls[0])
            jax.block_until_ready(metrics)
        logger.info("measuring for %s", duration(seconds))
        began, made = time.perf_counter(), 0
        for each in itertools.islice(calls, 1, None):
            states, metrics, _ = call(states, feeder.next(), each)
            jax.block_until_ready(metrics)
            made += size
            if made >= _LEAST_CALLS * size and time.perf_counter() - began > seconds:
                break
        # A run of one call has no other to be timed by.
        took = (time.perf_counter() - began) / made if made else first.seconds / size
    finally:
        feeder.close()
    return first, took, states[0].variables


def _time_validation(run: RunSetup, evaluator: Evaluator, variables: Any) -> float:
    """Return the seconds of a validation of the student, by those of a part of it."""
    batch = run.config.batch_size // run.config.accumulate
    images = evaluator.images("val")[: _VALIDATED * batch]
    predictor = Predictor(run.student.logits, run.devices, batch)
    predictor.prepare(variables, images)
    began = time.perf_counter()
    predictor.logits(variables, images)
    return (time.perf_counter() - began) * len(run.dataset.val) / len(images)


def _memory_row(devices: list[jax.Device]) -> list[str]:
    """Return the most memory that was in use so far."""
    stats = devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return ["measured: MB of a device at most", f"{stats['peak_bytes_in_use'] / 1e6:,.0f}"]
    try:
        import resource
    except ImportError:  # on Windows
        return ["measured: MB of this process at most", "not known here"]
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return ["measured: MB of this process at most", f"{peak / 1e6:,.0f}"]
