"""Whole runs with the options that touch more than the step: teachers, views, early stopping."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from helpers import tree_digest
from kd_jax import recipes
from kd_jax.metrics import fidelity
from kd_jax.runtime import devices
from kd_jax.runtime.atomic_files import read_json, read_json_lines
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import DivergedError, UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.training import fixed_view, saved_student
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.setup import build
from kd_jax.training.tracker import MemberError
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config


@pytest.fixture(scope="module")
def two_teachers(tmp_path_factory):
    """Two small teachers, from labels, of other seeds."""
    root = tmp_path_factory.mktemp("teachers")
    paths = [root / "first", root / "second"]
    for seed, path in enumerate(paths):
        config = digits_config(2)
        config.seed, config.total_steps, config.batch_size = seed, 60, 64
        config.mixup.kind = "none"
        config.learning_rate = 3e-3
        train(config, path)
    return paths


def distil(teacher, **options):
    config = digits_config(2)
    config.teacher.weights = str(teacher)
    config.update_from_flattened_dict({"distill.label_weight": 0.0} | options)
    return config


def losses_of(workdir):
    return [r["loss"] for r in read_json_lines(workdir / "metrics.jsonl") if "loss" in r]


def test_a_teacher_may_not_change_under_a_run(two_teachers, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(two_teachers[0], teacher)
    with pytest.raises(StoppedError):
        train(distil(teacher), tmp_path / "w", StopAfter(2))
    certified = read_json(tmp_path / "w" / "teacher.json")
    card, variables = saved_network.load(teacher)
    assert certified["arrays_sha256"] == card.arrays_sha256 == saved_network.digest_of(variables)
    before = tree_digest(tmp_path / "w")
    _, others = saved_network.load(two_teachers[1])
    changes = {
        "arrays_sha256": (card, others),
        "mean": (dataclasses.replace(card, mean=(0.1, 0.2, 0.3)), variables),
    }
    for name, (other_card, other_variables) in changes.items():
        saved_network.save(teacher, other_card, other_variables)
        with pytest.raises(UserError, match=rf"began with the teacher tiny.*{name} .* now"):
            train(distil(teacher), tmp_path / "w")
        assert tree_digest(tmp_path / "w") == before
    with pytest.raises(UserError, match="began with the teacher tiny"):
        saved_student.student(tmp_path / "w", "last")


def test_a_finished_run_knows_the_names_of_its_classes(two_teachers):
    card = saved_network.load_card(two_teachers[0])
    assert card.class_names == tuple("0123456789")


@pytest.mark.parametrize("combine", ["probabilities", "losses"])
def test_a_student_of_two_teachers(two_teachers, tmp_path, combine):
    first, second = two_teachers
    options = {"teacher.ensemble": (str(second),), "teacher.combine": combine}
    result = train(distil(first, **options), tmp_path / "w")
    assert result["teacher"] == "tiny+tiny"
    certified = read_json(tmp_path / "w" / "teacher.json")
    assert len(certified["members"]) == 2
    assert result["teacher_top1"] == certified["top1"]
    assert certified["sha256"] not in [member["sha256"] for member in certified["members"]]
    # The same run again finds its teachers; with another second one it is refused.
    assert train(distil(first, **options), tmp_path / "w") == result
    with pytest.raises(UserError, match="began with the teacher"):
        train(distil(second, **(options | {"teacher.ensemble": (str(first),)})), tmp_path / "w")


def test_a_teacher_is_named_once(two_teachers, tmp_path):
    first, second = map(str, two_teachers)
    for others in ((first,), (second, second)):
        with pytest.raises(UserError, match=r"config.teacher.ensemble .* expected each teacher on"):
            train(distil(first, **{"teacher.ensemble": others}), tmp_path / "w")
    (tmp_path / "alias").symlink_to(first)
    config = distil(first, **{"teacher.ensemble": (str(tmp_path / "alias"),)})
    with pytest.raises(UserError, match=r"are the same network: name each once"):
        train(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_fixed_view_keeps_the_teachers_logits_and_checks_them(two_teachers, tmp_path, caplog):
    logger.propagate = True
    config = distil(two_teachers[0], **{"distill.view": "fixed", "mixup.kind": "none"})
    with pytest.raises(StoppedError):
        train(config, tmp_path / "w", StopAfter(5))
    path = tmp_path / "w" / fixed_view.LOGITS_FILE
    kept = np.load(path)
    run = build(config)
    fresh = Evaluator(run).members_logits("train")
    np.testing.assert_allclose(kept["logits"], fresh, rtol=1e-5, atol=1e-5)
    np.savez(path, logits=kept["logits"] + 0.1, key=kept["key"])
    train(config, tmp_path / "w")
    assert "computed anew" in caplog.text
    np.testing.assert_allclose(np.load(path)["logits"], fresh, rtol=1e-5, atol=1e-5)
    train(config, tmp_path / "unbroken")
    assert losses_of(tmp_path / "w") == losses_of(tmp_path / "unbroken")


def test_a_teacher_whose_answers_are_not_finite_is_refused(two_teachers):
    config = distil(two_teachers[0])
    run = build(config)
    run.teachers.members[0].variables["params"]["fc"]["kernel"][0, 3] = np.nan
    evaluator = Evaluator(run)
    for ask in (evaluator.members_logits, evaluator.teacher_logits):
        with pytest.raises(UserError, match=r"the teacher tiny's logits are not finite for 360 "):
            ask("test")
    with pytest.raises(UserError, match=r"not finite for 7 of 7 images"):
        evaluator.some_members_logits("train", 7)


def test_answers_that_are_not_finite_in_validation_are_divergence(tmp_path, monkeypatch):
    """It is not saved, is not the best, and is never counted as right."""
    config = digits_config(2)
    config.eval_every_epochs = 10 * 32 / 1293
    original = fidelity.check_finite
    checked = []

    def second_is_broken(logits, whose="the"):
        checked.append(whose)
        if "val" in whose and sum("val" in each for each in checked) == 2:
            logits = np.where(np.arange(len(logits))[:, None] < 5, np.nan, logits)
        original(logits, whose)

    monkeypatch.setattr(fidelity, "check_finite", second_is_broken)
    with pytest.raises(MemberError, match=(
        r"on the val split the student's logits are not finite for 5 of 144 images at step 20: "
        r"the checkpoint of step 10 is kept, it reaches [\d.]+ % \(of 144 images\) on val"
    )):  # fmt: skip
        train(config, tmp_path / "w")
    assert [path.name for path in (tmp_path / "w" / "checkpoints").iterdir()] == ["10"]
    records = read_json_lines(tmp_path / "w" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "val"] == [10]
    assert not (tmp_path / "w" / "result.json").exists()


def test_a_student_whose_answers_are_not_finite_is_not_measured():
    run = build(digits_config(1))
    variables = jax.device_get(run.initial_state().variables)
    variables["params"]["fc"]["bias"] = np.full(10, np.inf, np.float32)
    evaluator = Evaluator(run)
    for look in (evaluator.measure_student, evaluator.student_logits):
        with pytest.raises(DivergedError, match="on the test split the student's logits are not"):
            look(devices.replicate(variables, run.devices), "test")


def test_early_stopping_keeps_the_best_and_survives_a_stop(tmp_path):
    def patient():
        config = digits_config(2)
        config.total_steps, config.patience = 400, 2
        config.eval_every_epochs = 0.2
        config.learning_rate = 3e-3
        return config

    result = train(patient(), tmp_path / "w")
    assert 0 < result["steps"] < 400
    records = read_json_lines(tmp_path / "w" / "metrics.jsonl")
    validated = [r["top1"] for r in records if r["kind"] == "val"]
    assert len(validated) - 1 - validated.index(max(validated)) == 2
    assert result["val_top1"] == max(validated) == result["best"]["val_top1"]
    assert result["test_top1"] == result["best"]["test_top1"]
    with pytest.raises(StoppedError):
        train(patient(), tmp_path / "stopped", StopAfter(result["steps"] - 5))
    stopped = train(patient(), tmp_path / "stopped")
    assert stopped["steps"] == result["steps"]
    assert stopped["test_top1"] == result["test_top1"]
    assert train(patient(), tmp_path / "w")["steps"] == result["steps"]


def test_the_seeds_recipe_runs_and_says_what_is_wrong_with_it(two_teachers, tmp_path, caplog):
    logger.propagate = True
    config = recipes.apply("seed")
    small = digits_config(2)
    for field in ("dataset.name", "student.arch", "batch_size", "total_steps", "num_devices"):
        value = small
        for name in field.split("."):
            value = value[name]
        config.update_from_flattened_dict({field: value})
    config.teacher.weights = str(two_teachers[0])
    result = train(config, tmp_path / "w")
    assert result["steps"] == 30
    assert "validation is a half of the test split" in caplog.text
    assert "mean 0.5 and std 0.5, not by its own" in caplog.text
    assert read_json(tmp_path / "w" / "teacher.json")["mean"] == [0.5, 0.5, 0.5]
    assert read_json(tmp_path / "w" / "model.json")["mean"] == [0.5, 0.5, 0.5]


def test_a_student_may_start_from_weights_and_keep_some(two_teachers, tmp_path):
    options = {"student.weights": str(two_teachers[1]), "student.freeze": "layer1|conv1"}
    config = distil(two_teachers[0], **options)
    run = build(config)
    start = run.initial_state().params
    result = train(config, tmp_path / "w")
    assert result["steps"] == 30
    _, variables = saved_network.load(tmp_path / "w")
    begun = run.initial_state().batch_stats
    kept = variables["batch_stats"]["layer1.0"]
    jax.tree.map(np.testing.assert_array_equal, kept, dict(begun["layer1.0"]))
    assert not np.array_equal(variables["batch_stats"]["bn1"]["mean"], begun["bn1"]["mean"])
    assert np.array_equal(variables["params"]["conv1"]["kernel"], start["conv1"]["kernel"])
    assert not np.array_equal(variables["params"]["fc"]["kernel"], start["fc"]["kernel"])
    # Its start may not change under it: the arrays, or the normalisation on the card alone.
    card, variables = saved_network.load(two_teachers[1])
    for changed in (dataclasses.replace(card, mean=(0.1, 0.2, 0.3)), card):
        other = tmp_path / str(changed.mean[0])
        shutil.copytree(two_teachers[1], other)
        if changed is card:
            variables["params"]["fc"]["bias"] = variables["params"]["fc"]["bias"] + 1
        place = tmp_path / f"of {other.name}"
        moved = distil(two_teachers[0], **(options | {"student.weights": str(other)}))
        with pytest.raises(StoppedError):
            train(moved, place, StopAfter(2))
        saved_network.save(other, changed, variables)
        refused = pytest.raises(
            UserError, match=r"student of the run in .* began with other weight"
        )
        with refused:
            train(moved, place)
        with refused:
            saved_student.student(place, "last")
    for pattern in ("nothing has this name", "."):
        config = distil(two_teachers[0], **(options | {"student.freeze": pattern}))
        with pytest.raises(UserError, match="expected some and not all"):
            build(config)
