"""A teacher that is asked before the step teaches the same as one that is asked within."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_runs
from kd_jax.data import sampler
from kd_jax.distillation import teacher_step
from kd_jax.distillation.inputs import Answered
from kd_jax.runtime import devices as devices_lib

STEPS = 6


def train(config, num_devices, asks_before):
    """Return the losses of some steps; `asks_before` computes the logits between the steps."""
    devices = jax.devices()[:num_devices]
    step, state, constants = tiny_runs.set_up(config)
    teacher = tiny_runs.tiny((0.4,) * 3)
    program = devices_lib.pmap(step, devices, (False, False, True))
    question = devices_lib.pmap(
        teacher_step.make_question_step(
            config, lambda variables, pixels: teacher.logits(variables[0], pixels)
        ),
        devices,
        (False, True, False, False),
        splits_result=True,
    )
    state, constants = devices_lib.replicate((state, constants), devices)
    losses = []
    for number in range(STEPS):
        batch = sampler.batch_at(
            number, config.batch_size, len(tiny_runs.IMAGES), 3, config.mixup.partner
        )
        batch = devices_lib.shard(batch, devices, config.accumulate)
        if asks_before:
            logits = question(constants, batch, np.int32(config.seed), np.int32(number))
            whole = devices_lib.unshard(np.asarray(logits), config.accumulate)
            assert whole.shape == (config.batch_size, 10)
            again = devices_lib.shard(whole[:, None], devices, config.accumulate)
            batch = Answered(batch, again)
        state, metrics = program(state, constants, batch)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize(
    ("num_devices", "options"),
    [
        (1, {}),
        (2, {"distill.view": "independent"}),
        (2, {"accumulate": 2, "mixup.kind": "example", "mixup.partner": "uniform"}),
    ],
)
def test_the_losses_are_those_of_the_fused_step(num_devices, options):
    config = tiny_runs.small_config(**options)
    fused = train(config, num_devices, asks_before=False)
    split = train(config, num_devices, asks_before=True)
    np.testing.assert_allclose(split, fused, rtol=1e-5)
    assert len(set(fused)) == STEPS


def test_shards_become_the_batch_again():
    devices = jax.devices()
    batch = np.arange(48 * 2).reshape(48, 2)
    for parts in (1, 2, 3):
        dealt = devices_lib.shard(batch, devices, parts)
        np.testing.assert_array_equal(devices_lib.unshard(dealt, parts), batch)


def test_a_fixed_view_is_not_asked_about():
    config = tiny_runs.small_config(**{"distill.view": "fixed", "mixup.kind": "none"})
    question = teacher_step.make_question_step(config, lambda variables, pixels: pixels)
    _, _, constants = tiny_runs.set_up(config)
    batch = jax.tree.map(jnp.asarray, sampler.batch_at(0, 32, 200, 3))
    with pytest.raises(AssertionError):
        question(constants, batch, np.int32(0), np.int32(0))
