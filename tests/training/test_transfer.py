"""A run that starts from a network of other classes: its body, a new head, and the same rules."""

import shutil

import jax
import numpy as np
import pytest

from image_folders import make_folder
from kd_jax.runtime.atomic_files import read_json
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.training.setup import build
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A network of the ten digits, and a folder of images of three other classes."""
    root = tmp_path_factory.mktemp("transfer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_JAX_CACHE_DIR", str(root / "cache"))
        make_folder(root / "set", count=30, test=True)
        config = digits_config(1)
        config.mixup.kind = "none"
        train(config, root / "digits")
        yield root


def transfer(root, **options):
    config = digits_config(1)
    config.dataset.name, config.dataset.data_dir = "folder", str(root / "set")
    config.dataset.val_examples, config.total_steps = 9, 12
    config.mixup.kind, config.student.weights = "none", str(root / "digits")
    config.update_from_flattened_dict(options)
    return config


def test_the_body_is_that_of_the_weights_and_the_head_a_new_one(root, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    run = build(transfer(root))
    card, variables = saved_network.load(root / "digits")
    assert (run.student.num_classes, run.student.mean, run.student.std) == (3, card.mean, card.std)
    fresh = run.student.init(run.config.seed, run.dataset.image_shape)
    state = run.initial_state()
    for part in ("conv1", "bn1", "layer1.0"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], variables["params"][part])
    jax.tree.map(np.testing.assert_array_equal, state.params["fc"], fresh["params"]["fc"])
    jax.tree.map(np.testing.assert_array_equal, dict(state.batch_stats), variables["batch_stats"])
    assert "its head of 10 classes of digits is replaced by a new one of 3 classes of folder" in (
        caplog.text
    )


def test_a_transferred_run_resumes_to_the_same_bits_and_knows_its_start(root, tmp_path):
    config = transfer(root)
    train(config, tmp_path / "unbroken")
    with pytest.raises(StoppedError):
        train(config, tmp_path / "stopped", StopAfter(5))
    train(config, tmp_path / "stopped")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "stopped")
    )
    assert first == second
    starts = read_json(tmp_path / "stopped" / "provenance.json")
    assert starts[0]["student_start"] == starts[1]["student_start"] is not None
    assert saved_network.load_card(tmp_path / "stopped").class_names == ("ant", "bee", "über")


def test_a_run_whose_start_was_replaced_is_refused(root, tmp_path):
    shutil.copytree(root / "digits", tmp_path / "digits")
    config = transfer(root, **{"student.weights": str(tmp_path / "digits")})
    with pytest.raises(StoppedError):
        train(config, tmp_path / "w", StopAfter(5))
    card, variables = saved_network.load(root / "digits")
    variables["params"]["conv1"]["kernel"] = variables["params"]["conv1"]["kernel"] * 1.01
    saved_network.save(tmp_path / "digits", card, variables)
    with pytest.raises(UserError, match=r"student of the run in .* began with other weights"):
        train(config, tmp_path / "w")


@pytest.mark.parametrize("pattern", ["fc", "kernel", "bias|conv1"])
def test_a_new_head_may_not_be_frozen(pattern, root):
    with pytest.raises(UserError, match="that head is new, since"):
        build(transfer(root, **{"student.freeze": pattern}))


def test_a_frozen_body_trains_the_new_head_alone(root, tmp_path):
    config = transfer(root, **{"student.freeze": "conv1|bn1|layer1"})
    train(config, tmp_path / "w")
    _, body = saved_network.load(root / "digits")
    _, trained = saved_network.load(tmp_path / "w")
    for part in ("conv1", "bn1", "layer1.0"):
        jax.tree.map(np.testing.assert_array_equal, trained["params"][part], body["params"][part])
    begun = build(config).initial_state().params["fc"]["kernel"]
    assert not np.array_equal(trained["params"]["fc"]["kernel"], begun)


def test_another_architecture_is_refused(root):
    with pytest.raises(UserError, match=r"config.student.arch is resnet8, but .* holds a tiny"):
        build(transfer(root, **{"student.arch": "resnet8"}))


def test_a_teacher_of_other_classes_is_still_refused(root):
    options = {"teacher.weights": str(root / "digits"), "distill.label_weight": 0.0}
    with pytest.raises(UserError, match="knows other classes than folder"):
        build(transfer(root, **options))


def test_a_transferred_network_teaches_its_classes(root, tmp_path):
    train(transfer(root), tmp_path / "teacher")
    options = {
        "teacher.weights": str(tmp_path / "teacher"),
        "distill.label_weight": 0.0,
        "student.weights": "",
    }
    result = train(transfer(root, **options), tmp_path / "student")
    assert result["teacher"] == "tiny"
    assert result["agreement"] is not None
