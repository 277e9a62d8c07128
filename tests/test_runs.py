"""Whole runs under the options that touch more than the step: teachers, views, early stopping."""

import numpy as np
import pytest

from kd_jax import fixed_view, measure, recipes
from kd_jax.console import logger
from kd_jax.errors import UserError
from kd_jax.experiment import build
from kd_jax.files import read_json, read_json_lines
from kd_jax.interrupt import StoppedError
from kd_jax.train import train
from training import StopAfter, digits_config


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
        train(distil(first, **(options | {"teacher.ensemble": (str(first),)})), tmp_path / "w")


def test_a_fixed_view_keeps_the_teachers_logits_and_checks_them(two_teachers, tmp_path, caplog):
    logger.propagate = True
    config = distil(two_teachers[0], **{"distill.view": "fixed", "mixup.kind": "none"})
    with pytest.raises(StoppedError):
        train(config, tmp_path / "w", StopAfter(5))
    path = tmp_path / "w" / fixed_view.LOGITS_FILE
    kept = np.load(path)
    run = build(config)
    fresh = measure.Judge(run).members_logits("train")
    np.testing.assert_allclose(kept["logits"], fresh, rtol=1e-5, atol=1e-5)
    np.savez(path, logits=kept["logits"] + 0.1, key=kept["key"])
    train(config, tmp_path / "w")
    assert "computed anew" in caplog.text
    np.testing.assert_allclose(np.load(path)["logits"], fresh, rtol=1e-5, atol=1e-5)
    train(config, tmp_path / "unbroken")
    assert losses_of(tmp_path / "w") == losses_of(tmp_path / "unbroken")


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
    from kd_jax import weights

    _, variables = weights.load(tmp_path / "w")
    assert np.array_equal(variables["params"]["conv1"]["kernel"], start["conv1"]["kernel"])
    assert not np.array_equal(variables["params"]["fc"]["kernel"], start["fc"]["kernel"])
    for pattern in ("nothing has this name", "."):
        config = distil(two_teachers[0], **(options | {"student.freeze": pattern}))
        with pytest.raises(UserError, match="expected some and not all"):
            build(config)
