"""Whole runs whose student is trained for int8: the switch, resuming, cohorts, what is kept."""

import jax
import numpy as np
import pytest

from kd_jax.models import quantize
from kd_jax.runtime.atomic_files import read_json, read_json_lines
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.training import saved_student
from kd_jax.training import train as train_lib
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config

SWITCH = 18  # of 30 steps


def int8_config(num_devices=1, **options):
    config = digits_config(num_devices)
    config.learning_rate, config.mixup.kind = 3e-3, "none"
    config.student.quantize, config.student.quantize_share = "int8", 0.4
    config.update_from_flattened_dict(options)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "whole"
    return place, train(int8_config(), place)


def losses(place):
    return {r["step"]: r["loss"] for r in read_json_lines(place / "metrics.jsonl") if "loss" in r}


def test_the_student_that_is_kept_computes_with_int8s_numbers(whole):
    place, result = whole
    card, variables = saved_network.load(place)
    assert card.quantize == "int8"
    assert quantize.have_ranges(variables)
    network = card.network()
    assert network.quantized
    run, step, last = saved_student.student(place, "last")
    assert step == 30
    images = run.dataset.test.images
    logits = jax.jit(lambda x: network.logits(variables, x))(np.float32(images) / 255)
    top1 = 100 * np.mean(np.argmax(logits, -1) == run.dataset.test.labels)
    assert top1 == pytest.approx(result["test_top1"], abs=1e-3)
    assert run.student.as_trained(last).quantized


@pytest.mark.parametrize("stop", [
    SWITCH - 3, *(pytest.param(step, marks=pytest.mark.proof) for step in (SWITCH, SWITCH + 4)),
])  # fmt: skip
def test_a_run_is_resumed_bit_for_bit_across_the_switch(whole, tmp_path, stop):
    with pytest.raises(StoppedError):
        train(int8_config(), tmp_path / "w", StopAfter(stop))
    train(int8_config(), tmp_path / "w")
    assert losses(tmp_path / "w") == losses(whole[0])
    expected, found = (saved_network.load_card(p) for p in (whole[0], tmp_path / "w"))
    assert found.arrays_sha256 == expected.arrays_sha256


def test_some_step_comes_before_the_switch(tmp_path):
    config = int8_config(total_steps=2, **{"student.quantize_share": 0.9})
    with pytest.raises(UserError, match=r"quantize_share is 0\.9, which is all of the 2 steps"):
        train(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.proof
def test_before_the_switch_the_training_is_that_of_floats(whole, tmp_path):
    config = int8_config(**{"student.quantize": "none", "student.quantize_share": 0.1})
    with pytest.raises(StoppedError):
        train(config, tmp_path / "w", StopAfter(SWITCH + 2))
    floats, ints = losses(tmp_path / "w"), losses(whole[0])
    assert [step for step in floats if floats[step] != ints[step]] == [SWITCH + 1, SWITCH + 2]


@pytest.mark.proof
def test_a_checkpoint_of_before_the_switch_is_in_floats(tmp_path):
    with pytest.raises(StoppedError):
        train(int8_config(), tmp_path / "w", StopAfter(SWITCH - 2))
    run, _, variables = saved_student.student(tmp_path / "w", "last")
    assert not run.student.as_trained(variables).quantized


@pytest.mark.proof
@pytest.mark.parametrize("num_devices", [2, 4])
def test_any_number_of_devices_is_the_same_training(whole, tmp_path, num_devices):
    train(int8_config(num_devices), tmp_path / "w")
    expected, found = losses(whole[0]), losses(tmp_path / "w")
    # Beyond the switch a last digit may be another integer, and then a step of int8.
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-4 if step <= SWITCH + 1 else 2e-2)
    _, one = saved_network.load(whole[0])
    _, many = saved_network.load(tmp_path / "w")
    for path, ends in quantize.ranges(one).items():
        width = ends[1] - ends[0]
        np.testing.assert_allclose(quantize.ranges(many)[path], ends, atol=0.05 * width)


@pytest.mark.proof
def test_several_steps_a_call_and_an_average_of_weights_are_the_same_training(whole, tmp_path):
    train(int8_config(steps_per_call=4, log_every_steps=10), tmp_path / "calls")
    for step in losses(tmp_path / "calls"):  # the mean of ten steps
        last_ten = np.mean([losses(whole[0])[step - n] for n in range(10)])
        assert losses(tmp_path / "calls")[step] == pytest.approx(last_ten, rel=1e-2)
    config = int8_config(**{"student.ema_decay": 0.9})
    result = train(config, tmp_path / "average")
    _, average = saved_network.load(tmp_path / "average")
    for path, ends in quantize.ranges(saved_network.load(whole[0])[1]).items():
        np.testing.assert_allclose(quantize.ranges(average)[path], ends, rtol=1e-2, atol=1e-3)
    assert result["test_top1"] > 15


@pytest.mark.proof
def test_a_cohort_is_quantised_together(whole, tmp_path):
    teacher = tmp_path / "teacher"
    train(int8_config(), teacher)  # a student of int8's numbers is a teacher like any other
    configs = [
        int8_config(**{"distill.label_weight": 0.0, "teacher.weights": str(teacher),
                       "learning_rate": rate})
        for rate in (1e-3, 3e-3)
    ]  # fmt: skip
    places = [tmp_path / "a", tmp_path / "b"]
    train_lib.train_together(configs, places)
    train(configs[1], tmp_path / "alone")
    for step, loss in losses(tmp_path / "alone").items():
        assert losses(places[1])[step] == pytest.approx(loss, rel=1e-3)
    assert all(saved_network.load_card(place).quantize == "int8" for place in places)
    floats = configs[0].copy_and_resolve_references()
    floats.student.quantize, floats.student.quantize_share = "none", 0.1
    with pytest.raises(
        UserError, match=r"cannot train together: config.student.quantize is 'int8'"
    ):
        train_lib.train_together([configs[0], floats], [tmp_path / "c", tmp_path / "d"])


@pytest.mark.proof
def test_a_run_that_is_quantised_already_has_its_length(tmp_path):
    def config(steps):
        return int8_config(
            **{
                "total_steps": steps,
                "schedule.name": "constant",
                "warmup_epochs": 0.0,
            }
        )

    with pytest.raises(StoppedError):
        train(config(30), tmp_path / "w", StopAfter(SWITCH - 2))
    train(config(40), tmp_path / "w")  # 24 steps of floats, of which 16 were made
    train(config(40), tmp_path / "at_once")
    first, second = (saved_network.load_card(tmp_path / name) for name in ("w", "at_once"))
    assert first.arrays_sha256 == second.arrays_sha256
    with pytest.raises(UserError, match="numbers from step 24 on, and a run of 50 from step 30 on"):
        train(config(50), tmp_path / "w")


@pytest.mark.proof
def test_a_run_may_start_from_a_quantised_student_in_floats_or_again(whole, tmp_path):
    for name, options in {
        "floats": {"student.quantize": "none", "student.quantize_share": 0.1},
        "again": {"student.quantize_share": 1.0},
    }.items():
        start = {"student.weights": str(whole[0]), "total_steps": 3}
        train(int8_config(**start, **options), tmp_path / name)
    assert saved_network.load_card(tmp_path / "floats").quantize == "none"
    assert read_json(tmp_path / "again" / "result.json")["test_top1"] > 15


WRONG = {
    "a network without batch norm": (
        {"student.arch": "bit_r50x1"}, "student.arch is bit_r50x1, expected none with it",
    ),
    "a module of one's own": (
        {"student.arch": "python:Net"}, "student.quantize works with the zoo's networks",
    ),
    "bfloat16": ({"student.dtype": "bfloat16"}, "dtype is bfloat16, expected float32"),
    "features": (
        {"distill.features": (("layer1.0", "layer1.0"),), "teacher.weights": "t",
         "distill.label_weight": 0.0}, "expected \\(\\) with it: features are compared",
    ),
    "patience": ({"patience": 3}, "config.patience is 3, expected 0 with it"),
    "all of it, from nothing": (
        {"student.quantize_share": 1.0}, "quantize_share is 1.0 without config.student.weights",
    ),
    "a share of nothing": (
        {"student.quantize": "none"}, r"quantize_share is 0.4, expected 0.1 unless",
    ),
    "other integers": ({"student.quantize": "int4"}, "is 'int4', expected none or int8"),
    "no share": ({"student.quantize_share": 0.0}, "expected a number in"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_read(name, tmp_path):
    options, says = WRONG[name]
    with pytest.raises(UserError, match=says):
        train(int8_config(**options), tmp_path / "w")
    assert not (tmp_path / "w").exists()
