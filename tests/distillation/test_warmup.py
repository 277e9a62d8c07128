"""The warm-up of the distillation loss: linear in steps, a part of the run, the same everywhere."""

import numpy as np
import pytest

from kd_jax.distillation.warmup import distillation_factor
from tiny_runs import LABELS, run, small_config

PLAIN = {"mixup.kind": "none", "distill.label_weight": 0.5}


def factors(num_steps, num_examples=200, **options):
    config = small_config(**PLAIN | options)
    return [float(distillation_factor(config, step, num_examples)) for step in range(num_steps)]


def test_it_rises_by_the_step_over_the_epochs_that_are_given():
    """200 examples in batches of 32: two epochs are 12.5 steps, so 12."""
    made = factors(20, **{"distill.warmup_epochs": 2.0})
    np.testing.assert_allclose(made, np.minimum(np.arange(1, 21) / 12, 1.0), rtol=1e-6)


@pytest.mark.parametrize("length", [{"total_epochs": 8.0}, {"total_steps": 50}])
def test_it_takes_a_tenth_of_a_short_run(length):
    made = factors(8, **{"distill.warmup_epochs": 20.0}, **length)
    np.testing.assert_allclose(made, np.minimum(np.arange(1, 9) / 5, 1.0), rtol=1e-6)


def test_a_run_of_a_few_steps_has_none():
    assert factors(3, **{"distill.warmup_epochs": 20.0}, total_steps=5) == [1.0] * 3


def test_without_it_nothing_is_computed():
    assert distillation_factor(small_config(), None, None) == 1.0


def losses(num_devices, num_steps=6, **options):
    config = small_config(**PLAIN | options)
    _, recorded = run(config, num_devices, num_steps, labels=LABELS)
    return np.array([metrics["loss"] for metrics in recorded])


def test_a_step_has_the_cross_entropy_whole_and_the_distillation_loss_in_part():
    """The first losses: without warm-up, from labels alone, and warming up over 20 steps."""
    options = {"distill.loss": "dkd", "distill.total_weight": 2.0, "total_steps": 200}
    whole = losses(1, 1, **options)[0]
    labels = losses(1, 1, **options | {"distill.label_weight": 1.0, "distill.total_weight": 1.0})[0]
    warming = losses(1, 1, **options, **{"distill.warmup_epochs": 1e3})[0]
    assert warming == pytest.approx(labels + (whole - labels) / 20, rel=1e-4)


def test_it_is_the_same_on_any_number_of_devices_and_in_parts():
    options = {"distill.warmup_epochs": 1.0}
    alone = losses(1, **options)
    np.testing.assert_allclose(losses(2, **options), alone, rtol=1e-4)
    in_parts = losses(1, 1, **options, accumulate=2)  # batch norm sees a part: about the same
    np.testing.assert_allclose(in_parts, alone[:1], rtol=0.1)
