"""Runs that train together: each as it would alone, and the teacher is asked once for all."""

import jax
import numpy as np
import pytest

from kd_jax import models
from kd_jax.distillation import ensemble
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.distillation.student import StudentSpec
from kd_jax.runtime import devices
from kd_jax.runtime.atomic_files import read_json, read_json_lines
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.training import cohort, dispatch, setup
from kd_jax.training.tracker import MemberError
from kd_jax.training.train import train, train_together
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config

VARIANTS = (
    {"distill.temperature": 2.0},
    {"learning_rate": 3e-4, "student.init_seed": 7, "weight_decay": 0.0},
    {"distill.loss": "squared_error", "student.arch": "resnet8", "student.dropout": 0.1},
    {"distill.label_weight": 0.5, "optimizer.name": "sgd", "student.ema_decay": 0.9},
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teachers") / "teacher"
    train(digits_config(2), path)
    return path


def member(teacher, **options):
    config = digits_config(2)
    config.teacher.weights = str(teacher)
    config.checkpoint_every_steps = 10
    options = {"distill.label_weight": 0.0} | options
    config.update_from_flattened_dict(options)
    return config


def losses_of(workdir):
    records = read_json_lines(workdir / "metrics.jsonl")
    return np.array([r["loss"] for r in records if r["kind"] == "train"])


@pytest.mark.slow
def test_each_is_as_if_it_trained_alone(teacher, tmp_path):
    configs = [member(teacher, **options) for options in VARIANTS]
    places = [tmp_path / f"together{n}" for n in range(len(configs))]
    results = train_together(configs, places)
    for number, (config, place, result) in enumerate(zip(configs, places, results, strict=True)):
        alone = train(config, tmp_path / f"alone{number}")
        np.testing.assert_allclose(
            losses_of(place)[:15], losses_of(tmp_path / f"alone{number}")[:15], rtol=1e-4
        )
        assert result == read_json(place / "result.json")
        assert result["trained_together"] == 4
        assert result["steps"] == alone["steps"] == 30
        # Given again alone, it is finished; its own files are all it needs.
        assert train(config, place) == result
        assert saved_network.load(place)[0].arch == config.student.arch


@pytest.mark.slow
def test_stopped_and_left_behind_they_end_as_if_nothing_had_happened(teacher, tmp_path):
    configs = [member(teacher, **options) for options in VARIANTS[:2]]
    unbroken = [tmp_path / "a", tmp_path / "b"]
    train_together(configs, unbroken)
    broken = [tmp_path / "c", tmp_path / "d"]
    with pytest.raises(StoppedError):
        train_together(configs, broken, StopAfter(8))
    with pytest.raises(StoppedError):  # one goes on alone, the other is left behind
        train(configs[1], broken[1], StopAfter(9))
    train_together(configs, broken)
    for whole, parts in zip(unbroken, broken, strict=True):
        np.testing.assert_allclose(losses_of(parts), losses_of(whole), rtol=1e-3)
        assert len(losses_of(parts)) == 30


def test_the_one_that_diverges_is_named_and_the_others_go_on(teacher, tmp_path):
    wild = {"learning_rate": 1e3, "optimizer.name": "sgd", "optimizer.clip_norm": 0.0}
    configs = [member(teacher), member(teacher, **wild)]
    places = [tmp_path / "calm", tmp_path / "wild"]
    with pytest.raises(MemberError, match=r"(loss|grad_norm) is (nan|inf) at step") as error:
        train_together(configs, places)
    assert error.value.workdir == places[1]
    assert train(configs[0], places[0])["steps"] == 30


def test_the_teacher_is_asked_once_for_all(monkeypatch):
    asked = []
    original = ensemble.Ensemble.logits
    monkeypatch.setattr(ensemble.Ensemble, "logits", lambda *a: asked.append(1) or original(*a))
    normalisation = (0.5,) * 3, (0.25,) * 3
    teacher = models.build("tiny", 10, *normalisation)
    config = digits_config(1)
    config.distill.label_weight = 0.0
    student = models.build("tiny", 10, *normalisation, axis_name=devices.AXIS)
    from kd_jax.data import sampler
    from kd_jax.training import optimizer

    specs = [StudentSpec(config, student, optimizer.build(config, 10, 0)) for _ in range(3)]
    group = ensemble.Ensemble((teacher,), (1.0,), "probabilities")
    states = tuple(
        state_lib.init_state(config, student.init(n, (32, 32, 3)), specs[0].optimizer)
        for n in range(3)
    )
    images = np.zeros((64, 32, 32, 3), np.uint8)
    constants = state_lib.Constants(images, None, (teacher.init(0, (32, 32, 3)),))
    step = devices.pmap(
        step_lib.make_cohort_step(specs, group), jax.devices()[:1], (False, False, True)
    )
    batch = devices.shard(sampler.batch_at(0, 32, 64, 0), jax.devices()[:1])
    jax.eval_shape(step, states, constants, batch)
    assert len(asked) == 1


def test_who_may_train_together():
    config = digits_config(1)
    config.teacher.weights = "somewhere"
    config.distill.label_weight = 0.0

    def key(**options):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(options)
        return cohort.key(other)

    assert key() == key(**{"distill.temperature": 9.0, "student.arch": "vgg11_bn"})
    for options in ({"seed": 5}, {"mixup.kind": "none"}, {"distill.view": "independent"},
                    {"teacher.weights": "elsewhere"}, {"total_steps": 31}):  # fmt: skip
        assert key(**options) not in (key(), None)
    assert key(patience=3) is None
    assert key(**{"distill.label_weight": 1.0}) is None
    other = config.copy_and_resolve_references()
    other.mixup.alpha = 0.3
    with pytest.raises(UserError, match=r"config.mixup.alpha is 1.0 in one and 0.3 in another"):
        cohort.check([config, other])


@pytest.mark.parametrize("size", [1, 3, 7])
def test_calls_end_where_there_is_something_to_do(size):
    marks = [5, 10, 12, 20]
    made = list(dispatch.calls(2, 23, size, marks))
    assert [step for call in made for step in call] == list(range(2, 23))
    assert {len(call) for call in made} <= {1, size}
    ends = {call.stop for call in made}
    assert ends >= {*marks, 23}
    if size == 3:
        assert max(len(call) for call in made) == 3


@pytest.mark.slow
@pytest.mark.parametrize("resident", ["always", "never"])
def test_several_steps_a_call_are_the_same_training(teacher, resident, tmp_path):
    recorded = {}
    for size in (1, 4):
        config = member(teacher)
        config.steps_per_call, config.log_every_steps = size, 5
        config.mixup.kind = "batch"
        config.dataset.resident = resident
        train(config, tmp_path / str(size))
        recorded[size] = losses_of(tmp_path / str(size))
    assert len(recorded[1]) == 6
    # KL is a difference of terms of about one nat, each of them rounded: at 0.001 nats that shows.
    np.testing.assert_allclose(recorded[4], recorded[1], rtol=1e-4, atol=1e-6)


def test_a_run_is_a_pupil():
    """What the step asks of a run, a run has."""
    run = setup.build(digits_config(1))
    assert all(hasattr(run, name) for name in ("config", "student", "optimizer"))
