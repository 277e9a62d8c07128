"""Configs: one place for defaults, every override checked before anything starts."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

from config_files import CONFIGS, cases, load
from helpers import ROOT, run
from image_folders import make_folder
from kd_jax import config as config_lib
from kd_jax import models
from kd_jax.config import checks, document, overrides, schema
from kd_jax.config.entry import closed, left_open, right_open
from kd_jax.config.fields import FIELDS, GROUPS, LABEL_LOSSES, NAME, PATH
from kd_jax.data import sampler
from kd_jax.distillation import losses, objective
from kd_jax.runtime import devices
from kd_jax.runtime.errors import UserError
from kd_jax.training import optimizer, plan
from kd_jax.weights import saved_network


def test_every_config_is_listed():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(CONFIGS)


@pytest.mark.parametrize(("name", "arguments"), cases())
def test_every_config_is_whole(name, arguments):
    config = load(name).get_config(*arguments)
    config.teacher.weights = config.teacher.weights or "somewhere"
    checks.check(config)
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize(("name", "arguments"), [
    pytest.param(name, arguments, marks=() if arguments == CONFIGS[name][0] else pytest.mark.proof)
    for name, arguments in cases()
])  # fmt: skip
def test_every_config_has_a_plan(name, arguments, tmp_path, monkeypatch):
    config = load(name).get_config(*arguments)
    if name == "folder":
        make_folder(tmp_path, count=40)
        config.dataset.data_dir = str(tmp_path)
    config.teacher.arch = config.teacher.arch or "resnet20"
    said = plan.plan(config, 2, 1000.0)
    values = dict(re.findall(r"\| (\S.*?) +\| +(\S.*?) +\|", said))
    assert f"{config.student.arch}, " in values["student"]
    number, size = values["collectives a step, and their MB"].split(", ")
    # The gradient's; and batch norm's, which BiT has not.
    assert int(number) == 1 if name == "bit" else int(number) > 1
    params = float(re.search(r"([\d.]+) M parameters", values["student"])[1])
    assert float(size) >= 4 * params * 0.99
    assert "time at 1000 images/s" in values


def test_a_plan_counts_every_teacher_and_their_kept_logits(tmp_path):
    config = load("resnet44").get_config()
    config.student.arch, config.teacher.arch = "resnet8", "resnet8"
    config.distill.view, config.mixup.kind = "fixed", "none"
    card = saved_network.ModelCard("resnet20", 100, (32, 32, 3), (0.5,) * 3, (0.25,) * 3,
                                   "cifar100", None, "a test", "0")  # fmt: skip
    (tmp_path / saved_network.CARD_FILE).write_text(json.dumps(dataclasses.asdict(card)))
    config.teacher.ensemble = (str(tmp_path),)
    said = plan.plan(config, 2, None)
    assert re.findall(r"\| teacher +\| +(\w+), ([\d.]+) M", said) == [
        ("resnet8", "0.08"), ("resnet20", "0.28")
    ]  # fmt: skip
    values = dict(re.findall(r"\| (\S.*?) +\| +(\S.*?) +\|", said))
    assert float(values["MB a device: the teachers"]) == pytest.approx(4 * 0.36, abs=0.1)
    # float32 of two teachers, 45,000 examples and 100 classes.
    assert values["MB a device: the teachers' kept logits"] == "36.0"
    config.teacher.ensemble = ("not here",)
    said = plan.plan(config, 2, None)
    assert re.search(r"\| teacher +\| +as its weights say", said)
    assert "MB a device: the teachers, as far as known" in said
    assert "collectives" not in said  # of a step that cannot be traced


def test_a_plan_knows_which_norms_are_frozen():
    config = load("resnet44").get_config()
    config.student.arch, config.teacher.arch = "resnet8", "resnet8"
    collectives = {}
    for pattern in ("", "bn"):
        config.student.freeze = pattern
        told = re.search(
            r"collectives a step, and their MB +\| +(\d+),", plan.plan(config, 2, None)
        )
        collectives[pattern] = int(told[1])
    assert collectives["bn"] == collectives[""] - 2 * 7  # one of each norm, and one of its gradient


def test_a_plan_of_a_streamed_run():
    config = load("resnet44").get_config()
    config.teacher.arch = "resnet20"
    config.dataset.resident = "never"
    config.student.ema_decay = 0.9
    said = plan.plan(config, 2, None)
    # 512 images with their partners, of three steps, on two devices.
    assert re.search(r"MB a device: streamed batches +\| +4\.7 ", said)


@pytest.mark.slow
def test_a_plan_looks_at_no_device(tmp_path):
    """JAX does not even ask which platforms there are: of known data, embedded, and of a folder."""
    make_folder(tmp_path, count=40)
    code = f"""
from jax._src import xla_bridge
from kd_jax.training import plan
from config_files import load
for name in ("resnet44", "demo", "folder"):
    config = load(name).get_config()
    config.teacher.arch = config.student.arch = "resnet8"
    if name == "folder":
        config.dataset.data_dir = {str(tmp_path)!r}
    plan.plan(config, 8, None)
    assert not xla_bridge.backends_are_initialized(), name
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment)
    assert done.returncode == 0


def test_the_command_says_the_plan_of_a_large_run():
    done = run("kd_jax.main", "--config=configs/bit.py", "--plan", "--plan_devices=32",
               "--plan_rate=7000")  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = dict(re.findall(r"\| (\S.*?) +\| +(\S.*?) +\|", done.stdout))
    assert "236.34 M parameters" in values["teacher"]
    assert values["examples, classes, image"] == "1,255,544, 1000, 224x224x3"
    assert values["steps, epochs"] == "367,836, 1200.0"
    # Parameters and two metrics, in float32.
    assert values["collectives a step, and their MB"] == f"1, {4 * 25_549_354 / 1e6:.2f}"


@pytest.mark.slow
def test_what_a_plan_counts_is_what_the_compiled_step_sends():
    config = load("demo").get_config()
    config.student.arch = "resnet8"
    said = plan.plan(config, 4, None, compiled=True)
    values = dict(re.findall(r"\| (\S.*?) +\| +(\S.*?) +\|", said))
    traced = values["collectives a step, and their MB"].split(", ")
    compiled = values["the same, compiled for CPUs"].split(", ")
    assert int(compiled[0]) <= int(traced[0])
    assert compiled[1] == traced[1]
    assert float(values["MB a device: all temporaries, compiled for CPUs"]) > 1


def test_every_default_has_a_check():
    """A new field without a choice, range or form would be a field that is never looked at."""
    for field in FIELDS:
        assert field.choices or field.range or field.form or field.kind is bool, field.path
    of_other_forms = {"schedule.step_at", "teacher.ensemble", "teacher.shares", "student.freeze",
                      "student.arch", "teacher.arch", "trackers", "distill.features"}  # fmt: skip
    forms = {field.path: field.form for field in FIELDS if field.form}
    assert of_other_forms == {path for path, form in forms.items() if form not in (NAME, PATH)}
    assert set(config_lib.RESUME_MUTABLE) <= set(config_lib.flatten(config_lib.default_config()))


def test_the_schema_is_whole():
    """Each field once, in a group that has a title, with a sentence of help and a right default."""
    assert len(schema.BY_PATH) == len(FIELDS)
    assert {field.group for field in FIELDS} == set(GROUPS)
    for field in FIELDS:
        assert re.fullmatch(r"[A-Z`l].*\.", field.help), field.path
        assert field.default is None or field.none_or is None
        if field.range and field.default is not None:
            assert field.range.holds(field.default), field.path
        assert not field.choices or field.default in field.choices
    assert config_lib.flatten(config_lib.default_config()) == {
        field.path: field.default for field in FIELDS
    }


def test_the_document_of_the_fields_is_that_of_the_schema():
    """After a change of the fields: `python -m kd_jax.config > docs/config.md`."""
    assert (ROOT / "docs" / "config.md").read_text() == document.markdown()
    assert run("kd_jax.config").stdout == document.markdown()


def test_what_has_a_name_in_the_schema_is_implemented():
    assert set(config_lib.choices("optimizer.name")) == set(optimizer.OPTIMIZERS)
    assert set(config_lib.choices("schedule.name")) == set(optimizer.SCHEDULES)
    for partner in config_lib.choices("mixup.partner"):
        assert sampler.batch_at(0, 4, 8, 0, partner).partner.shape == (4,)
    logits, labels = np.eye(3, dtype=np.float32), np.arange(3)
    options = config_lib.default_config().distill
    for options.loss in config_lib.choices("distill.loss"):
        if options.loss.startswith("python"):  # the user's own, see tests/api
            continue
        needs_labels = options.loss in LABEL_LOSSES
        assert to_teacher(options, logits, labels).shape == (1, 3)
        if needs_labels:
            with pytest.raises(AssertionError):
                to_teacher(options, logits, None)
        else:
            to_teacher(options, logits, None)
    assert {*losses.ON_LOGITS, *losses.ON_CHOICE, *LABEL_LOSSES} <= set(
        config_lib.choices("distill.loss")
    )


def to_teacher(options, logits, labels):
    return jax.vmap(
        lambda _: objective.distillation_loss(options, logits, logits, labels),
        axis_name=devices.AXIS,
    )(np.zeros(1))


def test_a_range_is_written_as_usual():
    assert [str(r) for r in (closed(0, 1), left_open(0, 1e3), right_open(1, 2))] == [
        "[0, 1]", "(0, 1000]", "[1, 2)"
    ]  # fmt: skip
    assert not left_open(0, 1).holds(0)
    assert not right_open(0, 1).holds(1)
    assert not closed(0, 1).holds(float("nan"))


def test_members_of_a_cohort_differ_behind_the_view():
    assert "distill.view" not in config_lib.COHORT_MUTABLE
    assert config_lib.in_groups(config_lib.COHORT_MUTABLE) == [
        "learning_rate", "warmup_epochs", "weight_decay", "keep_checkpoints", "trackers",
        "schedule.*", "optimizer.*", "student.* but student.quantize, student.quantize_share",
        "distill.* but distill.view",
    ]  # fmt: skip


WRONG = {
    "batch_size": 0,
    "total_epochs": -1.0,
    "learning_rate": float("nan"),
    "weight_decay": 1.5,
    "optimizer.name": "adamm",
    "dataset.image_size": -1,
    "dataset.name": "",
    "dataset.train_split": "",
    "dataset.test_split": "train",
    "dataset.val_examples": 2.5,
    "student.arch": "mobilenet",
    "student.dropout": 1.0,
    "distill.temperature": 0.0,
    "distill.label_weight": 1.1,
    "distill.label_smoothing": 0.1,  # without labels
    "distill.total_weight": 0.0,
    "distill.warmup_epochs": 5.0,  # without labels
    "student.ema_decay": 1.0,
    "mixup.kind": "Batch",
    "checkpoint_every_steps": 0,
    "teacher.on_mismatch": "ignore",
    "schedule.step_at": (0.7, 0.3),
    "schedule.name": "cosinus",
    "teacher.shares": (1.0, 2.0),  # for one teacher
    "teacher.ensemble": (3,),
    "student.freeze": "features.[",
    "distill.view": "fixed",  # with mixup
    "distill.loss": "dkd",  # with mixup
    "mixup.groups": 3,  # without kind=group
    "mixup.alpha": 0.0,
    "augment.crop_area": 0.0,
}

TOGETHER = {
    "accumulate is 3, expected a divisor": {"accumulate": 3},
    "mixup.groups is 3, expected a divisor": {"mixup.kind": "group", "mixup.groups": 3},
    "to stop early on the test split": {
        "patience": 3, "dataset.validation": "half_of_test"
    },
    "expected the first in config.teacher.weights": {
        "teacher.weights": "", "distill.label_weight": 1.0, "teacher.ensemble": ("a",)
    },
    "an image is cropped in one way": {"augment.crop_area": 0.5},
    "cannot answer for a mixture": {"distill.view": "fixed"},
    "a mixture has two": {"distill.loss": "dkd"},
    "feature_loss is attention, expected mse unless config.distill.features names some": {
        "distill.feature_loss": "attention"
    },
    "feature_weight is 0.5, expected 1.0 unless config.distill.features": {
        "distill.feature_weight": 0.5
    },
    "record_top is 5, expected 0 unless config.teacher.record names": {"teacher.record_top": 5},
    "record_dtype is float16, expected float32 unless config.teacher.record names": {
        "teacher.record_dtype": "float16", "teacher.replay": "answers"
    },
    "warmup_epochs is 2.0, expected 0 with config.distill.label_weight=1.0": {
        "distill.warmup_epochs": 2.0, "distill.label_weight": 1.0
    },
}  # fmt: skip


@pytest.mark.parametrize("says", TOGETHER)
def test_values_that_cannot_be_together(says):
    config = config_lib.default_config()
    config.teacher.weights = "somewhere"
    config.update_from_flattened_dict(TOGETHER[says])
    with pytest.raises(UserError, match=says):
        checks.check(config)


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_named(path):
    config = config_lib.default_config()
    config.teacher.weights = "somewhere"
    checks.check(config)
    config.update_from_flattened_dict({path: WRONG[path]})
    with pytest.raises(UserError, match=rf"config\.{path} is .*expected"):
        checks.check(config)


def test_what_nothing_reads_may_change_at_a_resume_and_is_forgotten_where_a_run_is_looked_at():
    old, new = config_lib.default_config(), config_lib.default_config()
    old.distill.feature_weight = 0.5  # of a run from before it was refused
    assert config_lib.differences(old, new) == []
    old.teacher.record_top = 5
    forgotten = config_lib.unread(old)
    assert forgotten["distill.feature_weight"] == 1.0
    assert forgotten["teacher.record_top"] == 0
    for config in (old, new):
        config.distill.features = (("a", "b"),)
        config.teacher.record = "answers"
    assert config_lib.unread(old) == {}
    assert config_lib.differences(old, new) == ["distill.feature_weight: 0.5 -> 1.0"]


def test_all_wrong_values_are_named_at_once():
    config = config_lib.default_config()
    config.update_from_flattened_dict({"batch_size": -1, "mixup.kind": "no"})
    with pytest.raises(UserError, match=r"mixup\.kind.*batch_size.*teacher\.weights"):
        checks.check(config)


def test_a_config_that_lacks_a_field_or_has_another():
    config = config_lib.default_config()
    del config.mixup
    config.mixing = ConfigDict({"kind": "batch"})
    with pytest.raises(UserError, match=r"config\.mixup\.kind is missing.*mixing\.kind is not"):
        checks.check(config)


def test_a_hold_out_is_a_count_or_a_share():
    config = config_lib.default_config()
    config.teacher.weights = "somewhere"
    for value in (0.001, 0.999, 1, 1.0, 5000, 2**31 - 1):
        config.dataset.val_examples = value
        checks.check(config)
    for value in (0.0, -0.1, -1, 1.5, float("nan"), float("inf"), 2.0**31):
        config.dataset.val_examples = value
        with pytest.raises(UserError, match=r"^config\.dataset\.val_examples is [^;]*$"):
            checks.check(config)


def test_a_run_from_before_hold_outs_were_shares_goes_on():
    config = config_lib.default_config()
    text = config_lib.to_json(config).replace('"val_examples": 5000.0', '"val_examples": 5000')
    assert text != config_lib.to_json(config)
    assert config_lib.differences(config_lib.from_json(text), config) == []


def test_a_field_follows_another_until_it_has_a_value():
    config = config_lib.default_config()
    config_lib.follow(config, "augment.crop_pad_px", "dataset.image_size", lambda size: size // 8)
    config_lib.follow(config, "student.arch", "batch_size", lambda size: f"resnet{size}")
    config.lock()
    for size in (32, 64):
        config.dataset.image_size, config.batch_size = size, size
        assert config.augment.crop_pad_px == size // 8
        assert config.student.arch == f"resnet{size}"
    stored = config_lib.from_json(config_lib.to_json(config))
    assert stored.to_dict() == config.to_dict()
    assert config_lib.differences(stored, config) == []
    copied = config.copy_and_resolve_references()
    config.augment.crop_pad_px = 3
    config.student.arch = "resnet8"
    config.dataset.image_size = config.batch_size = 128
    assert (config.augment.crop_pad_px, config.student.arch) == (3, "resnet8")
    assert (copied.augment.crop_pad_px, copied.student.arch) == (8, "resnet64")


@pytest.mark.parametrize(("part", "size", "arch", "pad", "area"), [
    ("distil", 0, "mobilenet_v3_small_cifar", 4, 1.0),
    ("distil", 32, "mobilenet_v3_small_cifar", 4, 1.0),
    ("distil", 64, "mobilenet_v3_small_cifar", 8, 1.0),
    ("distil", 65, "mobilenet_v3_small", 0, 0.25),
    ("distil", 96, "mobilenet_v3_small", 0, 0.25),
    ("recipe=hinton", 224, "mobilenet_v3_small", 0, 0.25),
    ("recipe=scratch", 224, "mobilenet_v3_small", 0, 1.0),
    ("recipe=seed", 32, "mobilenet_v3_small_cifar", 0, 1.0),
    ("teacher", 32, "resnet20", 4, 1.0),
    ("teacher", 96, "mobilenet_v3_large", 0, 0.25),
])  # fmt: skip
def test_networks_and_crops_for_a_folder_suit_its_image_size(part, size, arch, pad, area):
    values = flags.FlagValues()
    arguments = [
        "main", f"--config={ROOT}/configs/folder.py:{part}", f"--config.dataset.image_size={size}"
    ]  # fmt: skip
    holder = overrides.define(values, arguments)
    values(arguments)
    config = holder.value
    assert config.student.arch == arch
    assert (config.augment.crop_pad_px, config.augment.crop_area) == (pad, area)
    config.teacher.weights = "somewhere"
    checks.check(config)
    network = models.build(arch, 3, (0.5,) * 3, (0.25,) * 3)
    assert models.flat_shapes(network, (size or 28, size or 28, 3))


def test_differences_leave_out_what_may_change():
    old, new = config_lib.default_config(), config_lib.default_config()
    new.checkpoint_every_steps = 7
    new.num_devices = 4
    assert config_lib.differences(old, new) == []
    new.eval_every_epochs = 2.0
    assert config_lib.differences(old, new) == []
    old.patience = new.patience = 3  # counts validations, so their distance is part of the training
    assert config_lib.differences(old, new) == ["eval_every_epochs: 1.0 -> 2.0"]
    old, new = config_lib.default_config(), config_lib.default_config()
    new.learning_rate = 0.5
    new.mixup.kind = "none"
    changed = config_lib.differences(old, new)
    assert changed == ["learning_rate: 0.001 -> 0.5", "mixup.kind: 'batch' -> 'none'"]
