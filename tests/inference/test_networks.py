"""A stored network answers as it did in its run, and is refused where that is not certain."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from helpers import tree_digest
from image_folders import make_folder
from kd_jax.data import loose_images
from kd_jax.inference import networks
from kd_jax.runtime import devices
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.training import saved_student, workdir
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.setup import build
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config

NAMES = ("ant", "bee", "über")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of images, a teacher of it, and a student of that teacher; one is not finished."""
    root = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_JAX_CACHE_DIR", str(root / "cache"))
        make_folder(root / "set", count=24, size=(40, 50), test=True)
        config = digits_config(1)
        config.dataset.name, config.dataset.data_dir = "folder", str(root / "set")
        config.dataset.image_size, config.dataset.val_examples = 32, 0.25
        config.batch_size, config.total_steps, config.eval_every_epochs = 16, 40, 1.0
        config.mixup.kind = "none"
        train(config, root / "teacher")
        config.teacher.weights = str(root / "teacher")
        config.distill.label_weight, config.total_steps = 0.0, 20
        train(config, root / "student")
        with pytest.raises(StoppedError):
            train(config, root / "stopped", StopAfter(8))
        yield root


def shown(root):
    """The images of the test split as a user gives them."""
    found = loose_images.find([str(root / "set" / "test")])
    files, (images,) = loose_images.read(found, [(32, 32)])
    assert not any(file.problem for file in files)
    return images


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_the_kept_network_answers_as_in_its_run(batch_size, root, monkeypatch):
    monkeypatch.setattr(networks, "_BATCH", batch_size)
    before = tree_digest(root / "student")
    stored = networks.find(root / "student", with_teachers=True)
    assert stored.class_names == NAMES
    assert stored.image_shape == (32, 32, 3)
    network, teacher = networks.student(stored), networks.teacher(stored)
    run = build(saved_config(root / "student"))
    evaluator = Evaluator(run)
    _, variables = saved_network.load(root / "student")
    logits = evaluator.student_logits(devices.replicate(variables, run.devices), "test")
    images = shown(root)
    np.testing.assert_allclose(network.probabilities(images), softmax(logits), atol=1e-5)
    expected = softmax(evaluator.teacher_logits("test"))
    np.testing.assert_allclose(teacher.probabilities(images), expected, atol=1e-5)
    np.testing.assert_allclose(network.probabilities(images).sum(-1), 1.0)
    assert tree_digest(root / "student") == before


def saved_config(directory):
    config = workdir.load_config(directory)
    with config.unlocked():
        config.num_devices = 1
    return config


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("name", ["student", "stopped"])
def test_a_checkpoint_answers_as_it_is_evaluated(name, which, root):
    run, step, variables = saved_student.student(root / name, which)
    stored = networks.find(root / name, which)
    assert f"step {step}" in stored.origin
    assert stored.class_names == NAMES
    answers = networks.student(stored).probabilities(shown(root))
    logits = Evaluator(run).student_logits(variables, "test")
    np.testing.assert_allclose(answers, softmax(logits), atol=1e-5)


def test_the_two_files_are_enough(root, tmp_path):
    for name in ("model.json", "model.safetensors"):
        shutil.copy(root / "student" / name, tmp_path)
    images = shown(root)
    answers = [
        networks.student(networks.find(place)).probabilities(images)
        for place in (tmp_path, root / "student")
    ]
    np.testing.assert_array_equal(*answers)
    with pytest.raises(UserError, match="not the run that trained it, so its teacher is not known"):
        networks.find(tmp_path, with_teachers=True)
    with pytest.raises(UserError, match="no run in"):
        networks.find(tmp_path, "best")


def test_a_card_without_names_has_those_of_its_data_set_or_none(root, tmp_path):
    card, variables = saved_network.load(root / "student")
    saved_network.save(tmp_path, dataclasses.replace(card, class_names=None), variables)
    assert networks.find(tmp_path).class_names is None
    wide = np.zeros((16, 10), np.float32)
    variables["params"]["fc"] = {"kernel": wide, "bias": wide[0]}
    card = dataclasses.replace(card, class_names=None, dataset="digits", num_classes=10)
    saved_network.save(tmp_path, card, variables)
    assert networks.find(tmp_path).class_names == tuple("0123456789")


@pytest.mark.parametrize(("place", "options", "says"), [
    ("absent", {}, "--model=.*absent is not there: expected the workdir of a run"),
    ("student/model.json", {}, "model.json is a file: expected the workdir of a run"),
    ("set", {}, "is not the card of a stored network"),
    ("stopped", {}, "is not finished, so it keeps no network yet: .*--checkpoint=last or best"),
    ("teacher", {"with_teachers": True}, "had no teacher: leave --compare out"),
    ("teacher", {"with_teachers": True, "which": "last"}, "had no teacher: leave --compare out"),
])  # fmt: skip
def test_what_is_not_there_is_one_sentence(place, options, says, root):
    with pytest.raises(UserError, match=says):
        networks.find(root / place, **options)


def test_a_teacher_that_is_only_a_recording_is_refused(root, tmp_path):
    shutil.copytree(root / "student", tmp_path / "student")
    path = tmp_path / "student" / "config.json"
    config = json.loads(path.read_text())
    config["teacher"] |= {"weights": "", "replay": str(tmp_path / "recording")}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="had a recording of its teacher, which knows no other"):
        networks.find(tmp_path / "student", with_teachers=True)


def test_a_module_from_python_is_sent_to_python(root, tmp_path):
    card, variables = saved_network.load(root / "student")
    saved_network.save(tmp_path, dataclasses.replace(card, arch="python:Mine"), variables)
    with pytest.raises(UserError, match=r"is the module Mine, .*kd_jax.load\(DIRECTORY, module\)"):
        networks.find(tmp_path)


def test_a_teacher_that_is_another_or_gone_is_refused(root, tmp_path, monkeypatch):
    shutil.copytree(root / "student", tmp_path / "student")
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    path = tmp_path / "student" / "config.json"
    text = path.read_text().replace(str(root / "teacher"), str(tmp_path / "teacher"))
    path.write_text(text)
    networks.find(tmp_path / "student", with_teachers=True)  # moved, and the same
    card, variables = saved_network.load(tmp_path / "teacher")
    variables["params"]["fc"]["bias"] = variables["params"]["fc"]["bias"] + 1
    saved_network.save(tmp_path / "teacher", card, variables)
    with pytest.raises(UserError, match="began with the teacher tiny, and it is another now"):
        networks.find(tmp_path / "student", with_teachers=True)
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(UserError, match="no network at"):
        networks.find(tmp_path / "student", with_teachers=True)


def test_answers_that_are_not_finite_are_refused(root):
    stored = networks.find(root / "student")
    variables = {**stored.variables, "params": dict(stored.variables["params"])}
    bias = np.full(3, np.float32(3e38))
    kernel = np.full((16, 3), np.float32(3e38))
    variables["params"]["fc"] = {"kernel": kernel, "bias": bias}
    network = networks.student(dataclasses.replace(stored, variables=variables))
    with pytest.raises(UserError, match=r"the tiny's logits are not finite for .*cannot classify"):
        network.probabilities(shown(root))
