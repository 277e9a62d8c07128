"""Configs: one place for defaults, every override checked before anything starts."""

import importlib.util

import pytest
from ml_collections import ConfigDict

from helpers import ROOT
from kd_jax import config as config_lib
from kd_jax.errors import UserError

CONFIGS = {
    "resnet44": [()],
    "mbv2": [()],
    "vgg11_bn": [()],
    "scratch": [()],
    "teacher": [("resnet44",), ("mobilenetv2_x0_75",), ("vgg11_bn",)],
    "demo": [(), ("teacher",), ("distil",), ("scratch",)],
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases():
    return [(name, arguments) for name, several in CONFIGS.items() for arguments in several]


def test_every_config_is_listed():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(CONFIGS)


@pytest.mark.parametrize(("name", "arguments"), cases())
def test_every_config_is_whole(name, arguments):
    config = load(name).get_config(*arguments)
    config.teacher.weights = config.teacher.weights or "somewhere"
    config_lib.check(config)
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


def test_every_default_has_a_check():
    """A new field without a range or a choice would be a field that is never looked at."""
    free = {"dataset.data_dir", "dataset.download", "teacher.arch", "teacher.weights",
            "student.arch", "optimizer.nesterov", "augment.flip"}  # fmt: skip
    fields = set(config_lib.flatten(config_lib.default_config()))
    assert fields == free | set(config_lib._CHOICES) | set(config_lib._RANGES)
    assert set(config_lib.MAY_CHANGE) <= fields


WRONG = {
    "batch_size": 0,
    "total_epochs": -1.0,
    "learning_rate": float("nan"),
    "weight_decay": 1.5,
    "optimizer.name": "adamm",
    "dataset.name": "cifar1000",
    "dataset.val_examples": 0,
    "student.arch": "mobilenet",
    "student.dropout": 1.0,
    "distill.temperature": 0.0,
    "distill.label_weight": 1.1,
    "mixup.kind": "Batch",
    "checkpoint_every_steps": 0,
    "teacher.on_mismatch": "ignore",
}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_named(path):
    config = config_lib.default_config()
    config.teacher.weights = "somewhere"
    config_lib.check(config)
    config.update_from_flattened_dict({path: WRONG[path]})
    with pytest.raises(UserError, match=rf"config\.{path} is .*expected"):
        config_lib.check(config)


def test_all_wrong_values_are_named_at_once():
    config = config_lib.default_config()
    config.update_from_flattened_dict({"batch_size": -1, "mixup.kind": "no"})
    with pytest.raises(UserError, match=r"mixup\.kind.*batch_size.*teacher\.weights"):
        config_lib.check(config)


def test_a_config_that_lacks_a_field_or_has_another():
    config = config_lib.default_config()
    del config.mixup
    config.mixing = ConfigDict({"kind": "batch"})
    with pytest.raises(UserError, match=r"config\.mixup\.kind is missing.*mixing\.kind is not"):
        config_lib.check(config)


def test_differences_leave_out_what_may_change():
    old, new = config_lib.default_config(), config_lib.default_config()
    new.checkpoint_every_steps = 7
    new.num_devices = 4
    assert config_lib.differences(old, new) == []
    new.learning_rate = 0.5
    new.mixup.kind = "none"
    changed = config_lib.differences(old, new)
    assert changed == ["learning_rate: 0.001 -> 0.5", "mixup.kind: 'batch' -> 'none'"]
