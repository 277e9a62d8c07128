"""The config file and its overrides: taken as they are meant, or refused in one sentence."""

import contextlib
import re
import string
import sys

import pytest
from absl import flags
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import ROOT
from kd_jax import config as config_lib
from kd_jax.config import checks, config_file, overrides, schema
from kd_jax.runtime import backend, errors
from kd_jax.runtime.errors import UserError
from kd_jax.study import spec

DEMO = f"--config={ROOT}/configs/demo.py:scratch"


def parse(*arguments):
    """What a command does with its arguments, before it starts."""
    overrides.check(arguments)
    values = flags.FlagValues()
    overrides.define(values, ["main", *arguments])
    values(["main", *arguments])
    return values.config


def config_of(name):
    return f"--config={ROOT}/configs/{name}"


def test_overrides_are_taken_in_all_their_forms():
    config = parse(DEMO, "--config.batch_size=48", "-config.seed", "3", "--noconfig.augment.flip",
                   "--config.schedule.step_at=(0.2, 0.4)", "--config.teacher.ensemble=a",
                   "--config.teacher.ensemble=b", "--config.total_steps=7",
                   "--config.learning_rate=1e-2", "--config.batch_norm.sync=false")  # fmt: skip
    assert (config.batch_size, config.seed, config.augment.flip) == (48, 3, False)
    assert (config.schedule.step_at, config.teacher.ensemble) == ((0.2, 0.4), ("a", "b"))
    assert (config.total_steps, config.learning_rate) == (7, 0.01)
    assert not config.batch_norm.sync
    assert parse(DEMO, "--noconfig.augment.flip", "--config.augment.flip").augment.flip
    assert config.is_locked


WRONG = {
    "--config.mixup=none": r"^config\.mixup is a group of fields, expected one of config\.mixup\.a",
    "--config.mixup.knd=none": r"^config\.mixup\.knd is no field, did you mean config\.mixup\.kind",
    "--config.batchsize=2": r"^config\.batchsize is no field, did you mean config\.batch_size\?$",
    "--config.kind=none": r"^config\.kind is no field, did you mean config\.mixup\.kind\?$",
    "--config.qqq=1": r"^config\.qqq is no field: `python -m kd_jax\.config` has them all$",
    "--config.seed.x=1": r"^config\.seed\.x is no field, did you mean config\.seed\?$",
    "--config.=1": r"^config\. is no field",
    "--config.batch_size=1e3": r"^config\.batch_size is '1e3', expected a whole number$",
    "--config.batch_size=": r"^config\.batch_size is '', expected a whole number$",
    "--config.total_steps=none": r"^config\.total_steps is 'none', expected a whole number$",
    "--config.learning_rate=fast": r"^config\.learning_rate is 'fast', expected a number$",
    "--config.augment.flip=maybe": r"^config\.augment\.flip is 'maybe', expected true or false$",
    "--config.schedule.step_at=(0.5,": r"step_at is '\(0\.5,', expected values in brackets such as",
    "--config.mixup.kind": r"^config\.mixup\.kind has no value: expected --config\.mixup\.kind=VAL",
    "--total_epochs=3": r"^--total_epochs=3 is no flag: .* is --config\.total_epochs$",
    "--normalisation=half": r"is --config\.teacher\.normalisation or --config\.student\.norm",
    "--noflip": r"^--noflip is no flag: .* is --config\.augment\.flip$",
    "--weights=a": r"is --config\.teacher\.weights or --config\.student\.weights$",
    "--noconfig.seed": r"^config\.seed is not true or false: expected --config\.seed=VALUE$",
    "--config.seed=0x" + "f" * 5000: r"^config\.seed is '0xf+\.\.\.', expected a whole number",
}  # fmt: skip


@pytest.mark.parametrize("argument", WRONG)
def test_an_override_that_cannot_be_is_one_sentence(argument):
    with pytest.raises(UserError, match=WRONG[argument]):
        parse(DEMO, argument)


def test_all_wrong_overrides_are_named_at_once_and_none_goes_before_its_file():
    with pytest.raises(UserError, match=r"config\.a is no field.*; config\.seed is 'x', expected"):
        parse(DEMO, "--config.a=1", "--config.seed=x")
    for arguments in (["--config.seed=1"], ["--config.seed=1", DEMO]):
        with pytest.raises(UserError, match=r"--config\.seed=1 has no --config before it"):
            parse(*arguments)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (config_of("folder.py:recipe=hintn"), "hintn"),
        (config_of("demo.py:a:b"), "a:b is not a part: expected teacher, distil or scratch"),
        (config_of("scratch.py:recipe=seed"), r"takes no argument, expected --config=.*scratch"),
        (config_of("scratch.py:"), "takes no argument, expected"),
        (config_of("bit.py:224"), "takes no argument, expected"),
        (config_of("teacher.py"), r"needs arch as its argument, .*teacher\.py:ARCH"),
        (config_of("mbv2.py:hinton"), "'hinton' is no recipe: expected recipe=funmatch"),
        (config_of("studies/demo.py"), r"has no get_config\(\): .*; it is for kd_jax\.study"),
        (config_of("absent.py"), r"absent\.py is not there: expected a file such as"),
        ("--config=configs", "configs is no Python file"),
        ("--config=", "--config is empty"),
        ("--config=" + "x" * 5000 + ".py", "is not there"),
    ],
)  # fmt: skip
def test_a_config_file_that_does_not_take_this_is_one_sentence(given, says):
    with pytest.raises(UserError, match=says):
        parse(given)


def test_the_files_of_the_package_are_reached_by_name(tmp_path, monkeypatch):
    files = (ROOT / "configs").rglob("*.py")
    assert sorted(config_file.shipped().values()) == sorted(files)
    monkeypatch.chdir(tmp_path)
    for name in ("demo:scratch", "folder", "folder:recipe=hinton", "bit"):
        file, _, argument = name.partition(":")
        path = f"{ROOT}/configs/{file}.py" + (f":{argument}" if argument else "")
        assert parse(f"--config=kd_jax:{name}", "--config.seed=3") == parse(
            f"--config={path}", "--config.seed=3"
        )
    assert spec.load("kd_jax:studies/crd:epochs=12") == spec.load(
        f"{ROOT}/configs/studies/crd.py:epochs=12"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("kd_jax:resnet45", r"^--config=kd_jax:resnet45 does not .* kd_jax:resnet44, .*/table2, "),
        ("kd_jax:", "does not come with kd_jax: expected one of kd_jax:bit, "),
        ("kd_jax:../kd_jax/main", "does not come with kd_jax"),
        ("kd_jax:studies/crd", r"has no get_config\(\): .*; it is for kd_jax\.study"),
        ("kd_jax:scratch:3", r"takes no argument, expected --config=kd_jax:scratch$"),
        ("kd_jax:teacher", r"needs arch as its argument, expected --config=kd_jax:teacher:ARCH$"),
        ("configs/resnet44.py", "or kd_jax:resnet44, which comes with kd_jax$"),
        ("studies/crd", "or kd_jax:studies/crd, which comes with kd_jax$"),
    ],
)  # fmt: skip
def test_a_name_that_the_package_does_not_have_is_one_sentence(given, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        parse(f"--config={given}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(", r"own\.py fails with SyntaxError: '\(' was never closed"),
        ("import absent_module", "fails with ModuleNotFoundError: No module named 'absent_module'"),
        ("import sys; sys.exit('no')", "fails with SystemExit: no"),
        ("x = 1", r"has no get_config\(\): expected a file such as configs/resnet44\.py$"),
        ("get_config = 3", r"has no get_config\(\)"),
        ("def get_config(): return {}", r"get_config\(\) of .* returns a dict: expected kd_jax"),
        ("def get_config(): pass", r"get_config\(\) of .* returns a NoneType"),
        ("def get_config(): 1 / 0", r"own\.py fails with ZeroDivisionError: division by zero$"),
        ("def get_config(): open('/absent/x')", r"own\.py fails with FileNotFoundError: .*absent"),
        ("def get_config(): raise TypeError('a\\nb')", r"own\.py fails with TypeError: a b$"),
        ("def get_config(): return missing.x", r"own\.py fails with NameError: name 'missing' is"),
    ],
)  # fmt: skip
def test_a_config_file_that_fails_is_one_sentence(text, says, tmp_path):
    (tmp_path / "own.py").write_text(text + "\n")
    with pytest.raises(UserError, match=says):
        parse(f"--config={tmp_path}/own.py")
    with pytest.raises(UserError):
        spec.load(f"{tmp_path}/own.py")


def test_a_config_file_may_define_a_dataclass(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_file", raising=False)
    text = (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Own:\n    seed: int\n"
        "def get_study(): return Own(3)\n"
    )
    (tmp_path / "own.py").write_text(text)
    assert config_file.call(f"{tmp_path}/own.py", "get_study", "x.py").seed == 3
    (tmp_path / "own.py").write_text(text + "1 / 0\n")
    with pytest.raises(UserError, match="fails with ZeroDivisionError"):
        config_file.call(f"{tmp_path}/own.py", "get_study", "x.py")
    assert "config_file" not in sys.modules


def test_a_config_that_lacks_an_overridden_field_is_one_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seed': 1})\n"
    )
    arguments = ["main", f"--config={tmp_path}/own.py", "--config.mixup.kind=none"]
    values = flags.FlagValues()
    overrides.define(values, arguments)
    monkeypatch.setattr(flags, "FLAGS", values)
    with pytest.raises(SystemExit) as left:
        errors.run_command(pytest.fail, arguments, check=overrides.check)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: an override does not fit the config of the file: 'mixup'")


@pytest.mark.parametrize(
    ("dataset", "arch", "ways"),
    [
        ("folder", "", r"^train one with --config=configs/folder\.py:teacher --config\.da"),
        ("digits", "resnet8", r"^train one with --config=configs/demo\.py:teacher and give"),
        ("cifar100", "resnet44", r"--src=published .*--config=configs/teacher\.py:resnet44 and"),
        ("svhn_cropped", "", r"--src=FILE .*teacher\.py:ARCH --config\.dataset\.name=svhn_c"),
    ],
)  # fmt: skip
def test_the_way_to_a_teacher_is_one_that_exists(dataset, arch, ways):
    said = checks.ways_to_a_teacher(arch, dataset)
    assert re.search(ways, said), said
    assert ("published" in said) == (dataset == "cifar100")


FIELDS = sorted(schema.TYPES)
NAMES = (
    st.sampled_from(FIELDS)
    | st.sampled_from(sorted({path.rpartition(".")[0] for path in FIELDS}))
    | st.text(string.ascii_lowercase + "._[]()'", max_size=12)
)
VALUES = (
    st.text(max_size=12)
    | st.text(string.digits + "()[]{},.'\"-+eExX_ nfa", max_size=12)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["none", "None", "true", "(1, 2)", "()", "[", "{[]: 1}", "inf", "nan", "--"])
)
OVERRIDES = st.builds(
    lambda form, name, value: form.format(name, value),
    st.sampled_from(["--config.{}={}", "-config.{}={}", "--config.{}", "--noconfig.{}",
                     "--config.{}=={}"]),
    NAMES, VALUES,
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(OVERRIDES, max_size=3))
@example(["--config.schedule.step_at=" + "(" * 500])
@example(["--config.teacher.shares=" + "9" * 5000])
@example(["--config.teacher.shares=(0x" + "f" * 5000 + ",)", "--config.teacher.ensemble=x"])
@example(["--config.learning_rate=" + "9" * 400])
@example(["--config.seed=--config.seed=1"])
def test_overrides_that_are_anything(given):
    try:
        config = parse(DEMO, *given)
    except (UserError, flags.Error):  # any other error fails the test
        return
    assert set(config_lib.flatten(config)) == set(FIELDS)
    with contextlib.suppress(UserError):
        checks.check(config)


@pytest.mark.parametrize(
    ("asked", "reason", "says"),
    [
        ("cuda", "", r"JAX_PLATFORMS=cuda asks for devices that JAX does not find here: expected "
                     r"JAX_PLATFORMS=cpu, or unset .*cuda needs .* requirements-cuda\.txt"),
        ("mars", "Unable to initialize backend 'mars': Backend 'mars' is not\nknown. (set "
                 "JAX_PLATFORMS='' to automatically choose)",
         r"here \(Unable to initialize backend 'mars': Backend 'mars' is not known\.\): expected"),
        ("tpu", "x" * 999, r"here \(x{157}\.\.\.\): expected .*tpu needs .* requirements-tpu\.txt"),
    ],
)  # fmt: skip
def test_devices_that_are_not_there_are_one_sentence(asked, reason, says):
    assert re.search(says, backend.explain(asked, reason))


def test_a_command_that_starts_jax_says_which_devices_are_missing(monkeypatch, capsys):
    """JAX runs already here, so its answer is put in its mouth: CUDA's is an empty one."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())

    def ends(*_):
        raise AssertionError

    with pytest.raises(AssertionError):  # ours, since JAX finds devices
        errors.run_command(ends, ["command"])
    monkeypatch.setattr("jax.local_devices", ends)
    with pytest.raises(SystemExit) as left:
        errors.run_command(ends, ["command"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: JAX_PLATFORMS=cuda asks for devices")


@pytest.mark.parametrize(
    ("value", "says"),
    [("--n=x", "--n=x: expected a whole number"), ("--f=x", "--f=x: expected a number"),
     ("--b=x", "--b=x: expected true or false")],
)  # fmt: skip
def test_a_flag_of_another_type_is_one_sentence(value, says, monkeypatch, capsys):
    values = flags.FlagValues()
    flags.DEFINE_integer("n", 1, "", flag_values=values)
    flags.DEFINE_float("f", 1.0, "", flag_values=values)
    flags.DEFINE_bool("b", True, "", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    with pytest.raises(SystemExit):
        errors.run_command(pytest.fail, ["command", value])
    assert capsys.readouterr().err.strip() == f"error: flag {says}"
