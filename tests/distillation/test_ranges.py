"""Ranges of int8's numbers are those of the whole batch, in however many parts it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.distillation import step as step_lib
from kd_jax.distillation.student import StudentGradients
from kd_jax.models import quantize
from kd_jax.models.norm import Statistics
from kd_jax.runtime.devices import AXIS

X = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)  # four parts of a batch
RUNNING = {"new": np.zeros(2, np.float32), "old": np.array([-0.5, 3.0], np.float32)}


def gradients_of(part):
    """Return gradients whose ranges have moved towards one part of the batch."""
    ranges = {
        name: {"out_range": quantize._moved(jnp.asarray(running), part, None)}
        for name, running in RUNNING.items()
    }
    statistics = Statistics({"bn": {"mean": jnp.mean(part)}}, ranges)
    return [StudentGradients({"w": jnp.mean(part)}, {"loss": jnp.mean(part)}, statistics)]


def check(gradients):
    (gradients,) = gradients
    for name, running in RUNNING.items():
        expected = quantize._moved(jnp.asarray(running), X, None)
        np.testing.assert_allclose(
            gradients.batch_stats.running[name]["out_range"], expected, rtol=1e-6
        )
    means = [gradients.params["w"], gradients.metrics["loss"],
             gradients.batch_stats.of_batch["bn"]["mean"]]  # fmt: skip
    np.testing.assert_allclose(means, [X.mean()] * 3, rtol=1e-4)


def test_in_parts_one_after_another():
    check(step_lib.accumulate(gradients_of, X.reshape(-1, 50), 4))


@pytest.mark.parametrize("per_device", [1, 2])
def test_on_devices_that_share_no_statistics(per_device):
    count = 4 // per_device

    def step(x):
        gradients = step_lib.accumulate(gradients_of, x, per_device)
        return step_lib.mean_over_devices(gradients, statistics_are_equal=False)

    shards = X.reshape(count, per_device, 50)
    devices = jax.devices()[:count]
    result = jax.pmap(step, AXIS, devices=devices)(shards)
    for device in range(count):
        check(jax.tree.map(lambda leaf: np.asarray(leaf)[device], result))  # noqa: B023
