"""kd_jax's own step and networks, set up for the benchmark as a run sets them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kd_jax import models
from kd_jax.config import default_config
from kd_jax.data import catalog, sampler
from kd_jax.distillation import ensemble
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.runtime import devices as devices_lib
from kd_jax.training import optimizer as optimizer_lib
from kd_jax.training.evaluator import Predictor

_FACTS = catalog.facts("cifar100")
_NORMALISATION = _FACTS.mean, _FACTS.std
_IMAGE_SHAPE = (32, 32, 3)


def devices_for(batch_size: int) -> list[jax.Device]:
    """Return the devices that a run would take."""
    devices_lib.prepare(0, batch_size)
    return devices_lib.select(0, batch_size)


def train_step(
    images: np.ndarray,
    teacher: str | None,
    student: str,
    batch_size: int,
    dtype: str = "float32",
) -> tuple[Callable[[int], None], Callable[[], None], Any]:
    """Return `step(n)`, `wait()`, and the compiled step with its arguments.

    With a teacher it is the default recipe; without, training from labels with crop and flip.
    """
    config = default_config()
    config.batch_size = batch_size
    devices = devices_for(batch_size)
    student_network = models.build(
        student, 100, *_NORMALISATION, axis_name=devices_lib.AXIS, dtype=dtype
    )
    group, constants = None, state_lib.Constants(images)
    if teacher:
        network = models.build(teacher, 100, *_NORMALISATION, dtype=dtype)
        group = ensemble.Ensemble((network,), (1.0,), "probabilities")
        constants = constants._replace(teacher_variables=(network.init(1, _IMAGE_SHAPE),))
    else:
        config.distill.label_weight, config.mixup.kind = 1.0, "none"
        constants = constants._replace(labels=np.arange(len(images), dtype=np.int32) % 100)
    optimizer = optimizer_lib.build(config, total_steps=10**6, warmup_steps=0)
    state = state_lib.init_state(config, student_network.init(0, _IMAGE_SHAPE), optimizer)
    step = step_lib.make_train_step(config, student_network, group, optimizer)
    mapped = devices_lib.pmap(step, devices, (False, False, True), donate_argnums=0)
    held = {"state": devices_lib.replicate(state, devices)}
    constants = devices_lib.replicate(constants, devices)

    def run(number: int) -> None:
        batch = sampler.batch_at(number, batch_size, len(images), seed=0)
        held["state"], held["metrics"] = mapped(
            held["state"], constants, devices_lib.shard(batch, devices)
        )
        if number % 2:
            jax.block_until_ready(held["metrics"])

    return run, lambda: jax.block_until_ready(held["state"]), (config, devices, constants)


def input_only(config: Any, devices: list[jax.Device], constants: Any) -> Callable[[int], None]:
    """Return a step that makes the views and nothing else."""
    from kd_jax.distillation import views

    def make(images: jax.Array, batch: Any, step: jax.Array) -> jax.Array:
        # Whole, as the networks get them: a sum instead would be fused with the gather, and slow.
        return views.make(images, batch, 0, step, config).student

    mapped = devices_lib.pmap(make, devices, (False, True, False))

    def run(number: int) -> None:
        batch = sampler.batch_at(number, config.batch_size, len(constants.images), seed=0)
        jax.block_until_ready(
            mapped(constants.images, devices_lib.shard(batch, devices), np.int32(number))
        )

    return run


def forward(images: np.ndarray, arch: str, batch_size: int) -> Callable[[int], None]:
    """Return a step that asks a frozen network about one batch, as evaluation does."""
    devices = devices_for(batch_size)
    network = models.build(arch, 100, *_NORMALISATION)
    predictor = Predictor(network.logits, devices, batch_size)
    variables = devices_lib.replicate(network.init(0, _IMAGE_SHAPE), devices)
    placed = devices_lib.replicate(images[:batch_size], devices)

    def run(number: int) -> None:
        predictor.logits(variables, placed)

    return run
