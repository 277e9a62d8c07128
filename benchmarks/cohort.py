"""What a cohort saves: three temperatures under one teacher, together and each alone.

    python -m benchmarks.cohort [--teacher_weights=teachers/resnet44] [--steps=50] [--rounds=5]

Real CIFAR-100 where tfds has it, ResNet44 as teacher, MobileNetV3-small as students, batch 512.
Both ways make the same steps from the same states, taking turns; printed are the largest relative
difference of a loss over all steps, and the time of the cohort's step as a share of the three
students' own. Have nothing else running.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from benchmarks import jax_side
from kd_jax import models
from kd_jax.config import default_config
from kd_jax.data import catalog, sampler
from kd_jax.data.dataset import load
from kd_jax.distillation import ensemble
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.distillation.student import StudentSpec
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import run_command
from kd_jax.teachers import load as load_lib
from kd_jax.training import optimizer as optimizer_lib

_WEIGHTS = flags.DEFINE_string("teacher_weights", "", "Of ResNet44; empty: drawn from a seed.")
_STEPS = flags.DEFINE_integer("steps", 50, "Steps over which losses are compared.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of both ways.", lower_bound=1)
_TURN = 3  # steps
_TEMPERATURES = (2.0, 5.0, 10.0)
_STUDENT, _TEACHER, _BATCH = "mobilenet_v3_small", "resnet44", 512


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    del argv
    base = default_config()
    base.teacher.arch, base.teacher.weights = _TEACHER, _WEIGHTS.value
    devices = jax_side.devices_for(_BATCH)
    train = load(base.dataset).train
    facts = catalog.facts("cifar100")
    normalisation = facts.mean, facts.std
    network = models.build(_TEACHER, 100, *normalisation)
    variables: tuple[models.Variables, ...] = (network.init(1, (32, 32, 3)),)
    if _WEIGHTS.value:
        variables = tuple(load_lib.load(base.teacher, "cifar100").variables)
    group = ensemble.Ensemble((network,), (1.0,), "probabilities")
    student = models.build(_STUDENT, 100, *normalisation, axis_name=devices_lib.AXIS)
    specs = []
    for temperature in _TEMPERATURES:
        config = base.copy_and_resolve_references()
        config.distill.temperature, config.log_every_steps = temperature, 1
        optimizer = optimizer_lib.build(config, total_steps=10**5, warmup_steps=100)
        specs.append(StudentSpec(config, student, optimizer))
    constants = devices_lib.replicate(state_lib.Constants(train.images, None, variables), devices)
    first = student.init(0, (32, 32, 3))

    def side(members: Sequence[StudentSpec]) -> _Side:
        states = tuple(state_lib.init_state(m.config, first, m.optimizer) for m in members)
        step = step_lib.make_cohort_step(members, group)
        mapped = devices_lib.pmap(step, devices, (False, False, True), donate_argnums=0)
        return _Side(mapped, devices_lib.replicate(states, devices), constants, devices, len(train))

    together, alone = side(specs), [side([spec]) for spec in specs]
    ours = np.array(together.losses(_STEPS.value))
    own = np.concatenate([np.array(each.losses(_STEPS.value)) for each in alone], axis=1)
    print(f"largest relative difference of {ours.size} losses: {np.abs(ours / own - 1).max():.1e}")
    shares = []
    for _ in range(_ROUNDS.value):
        seconds = together.seconds(_TURN)
        shares.append(seconds / sum(each.seconds(_TURN) for each in alone))
    print(
        f"time of the cohort to three alone: {statistics.median(shares):.2f} "
        f"({min(shares):.2f} to {max(shares):.2f}), {_ROUNDS.value} turns"
    )


class _Side:
    """One way of training, with its states."""

    def __init__(self, step, states, constants, devices, examples):  # type: ignore[no-untyped-def]
        self._step, self._states, self._constants = step, states, constants
        self._devices, self._examples, self._number = devices, examples, 0

    def losses(self, count: int) -> list[list[float]]:
        """Make some steps; return every student's loss of each."""
        return [[float(metrics["loss"]) for metrics in self._next()] for _ in range(count)]

    def seconds(self, count: int) -> float:
        """Return the time of some steps."""
        self.losses(1)
        began = time.perf_counter()
        for _ in range(count):
            metrics = self._next()
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    def _next(self) -> state_lib.Metrics:
        batch = sampler.batch_at(self._number, _BATCH, self._examples, 0)
        self._number += 1
        cut = devices_lib.shard(batch, self._devices)
        self._states, metrics = self._step(self._states, self._constants, cut)
        return metrics


if __name__ == "__main__":
    from kd_jax.runtime import huge_pages

    huge_pages.enable()
    run_command(main)
