"""A plan knows the teacher where it lies, and this machine; measured, it says how long."""

import dataclasses
import json
import re
import types

import pytest

from kd_jax.config import default_config
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import foreign
from kd_jax.training import measured_plan, plan, planned_teachers, workdir
from kd_jax.weights import saved_network
from tiny_runs import digits_config

SHAPE = (32, 32, 3)


def find(weights, arch="", **options):
    config = default_config()
    config.teacher.weights, config.teacher.arch = str(weights), arch
    config.update_from_flattened_dict(options)
    return planned_teachers.find(config, 100, SHAPE)


@pytest.fixture
def imported(tmp_path):
    """A directory as import_teacher makes it; only its card is read."""
    card = saved_network.ModelCard("resnet20", 100, SHAPE, (0.5,) * 3, (0.25,) * 3, "cifar100",
                                   69.83, "a test", "0")  # fmt: skip
    place = tmp_path / "teacher"
    place.mkdir()
    (place / saved_network.CARD_FILE).write_text(json.dumps(dataclasses.asdict(card)))
    return place


def test_a_directory_tells_its_network_and_what_it_reaches(imported):
    (teacher,) = find(imported)
    assert re.fullmatch(
        r"resnet20, 0.28 M parameters, .* M multiply-adds, 100 classes of cifar100, "
        "top-1 69.83 % claimed, not measured",
        teacher.words,
    )
    assert teacher.network.arch == "resnet20"
    with pytest.raises(UserError, match=r"arch is resnet44, but .* holds a resnet20: change one"):
        find(imported, "resnet44")


def test_so_does_the_workdir_of_a_run_that_is_not_finished(tmp_path):
    config = default_config()
    config.student.arch = "resnet32"
    workdir.create(tmp_path / "w", config)
    (teacher,) = find(tmp_path / "w")
    assert teacher.words.startswith("resnet32, ")
    assert teacher.words.endswith("that run is not finished")


def test_weights_that_are_not_there_are_said_to_be_missing(tmp_path):
    (teacher,) = find(tmp_path / "later", "resnet44")
    assert teacher.words.endswith(f"{tmp_path / 'later'} is not there yet")
    (teacher,) = find(tmp_path / "later")
    assert (teacher.words, teacher.network) == ("as its weights say", None)


def test_a_teacher_of_another_library_is_looked_for_there(monkeypatch):
    (teacher,) = find("onnx:not/here.onnx")
    assert teacher.words.startswith("onnx:not/here.onnx; ")
    network = types.SimpleNamespace(name="torch:net:make", apply=None, input_size=224)
    monkeypatch.setattr(foreign, "load", lambda place, classes: network)
    (teacher,) = find("torch:net:make@FILE")
    assert teacher.words == (
        "torch:net:make, answers on the host, between the steps, images of 224 pixels"
    )
    assert not teacher.in_step


def test_the_devices_are_those_of_this_machine_unless_they_are_given():
    config = digits_config(2)
    config.student.arch = "resnet8"
    said = plan.plan(config, None, None)
    assert re.search(r"this machine +\| +2 device\(s\) of \d+ CPU core\(s\), processor \w+", said)
    assert "32 on 2 device(s)" in said
    assert "this machine" not in plan.plan(config, 8, None)


def features_config(student_path):
    config = default_config()
    config.dataset.name, config.batch_size = "cifar100", 8
    config.teacher.arch, config.student.arch = "resnet20", "resnet8"
    config.distill.features = (("layer3", student_path),)
    return config


def test_a_plan_counts_features_and_refuses_a_wrong_path():
    config = features_config("layer3")
    values = dict(re.findall(r"\| (\S.*?) +\| +(\S.*?) +\|", plan.plan(config, 2, None)))
    assert values["features"] == "layer3.0 [8, 8, 64] to the teacher's layer3.2 [8, 8, 64]"
    without = config.copy_and_resolve_references()
    without.distill.features = ()
    names = (
        "collectives a step, and their MB",
        "MB a device: the state (parameters, statistics, optimiser)",
    )
    less = dict(re.findall(r"\| (\S.*?) +\| +(\S.*?) +\|", plan.plan(without, 2, None)))
    projector = 4 * (64 * 64 + 64) / 1e6
    sent = [float(each[names[0]].split(", ")[1]) for each in (values, less)]
    assert sent[0] - sent[1] == pytest.approx(projector, abs=0.011)
    with pytest.raises(UserError, match="no module 'layer9'"):
        plan.plan(features_config("layer9"), 2, None)


def test_a_plan_counts_a_student_for_int8():
    config = features_config("layer3")
    config.distill.features, config.total_steps = (), 100
    config.student.quantize = "int8"
    said = plan.plan(config, 2, None)
    assert re.search(r"with int8's numbers +\| +the last 10 steps", said)


@pytest.mark.parametrize("options", [{"num_devices": 8}, {"num_devices": None, "compiled": True}])
def test_only_this_machine_is_measured(options):
    config = digits_config(1)
    with pytest.raises(UserError, match="expected neither --plan_devices nor --plan_compile"):
        plan.plan(config, images_per_second=None, measured=True, **options)


def test_what_is_measured_is_the_step_and_a_validation():
    config = digits_config(1)
    values = dict(measured_plan.rows(config, seconds=0.0))
    assert float(values["measured: images/s in training"].replace(",", "")) > 0
    assert float(values["measured: each of 1 validations"].removesuffix(" s")) > 0
    assert float(values["measured: MB of this process at most"].replace(",", "")) > 100
    assert re.fullmatch(r"[\dmsh]+", values["time of the whole run, by these"])
