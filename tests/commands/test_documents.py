"""Every block of the README is run as it is written, with small numbers; the rest is checked.

What makes the numbers small is appended: `SMALL` to the command it belongs to, where a later flag
takes the place of an earlier one, and `SMALL_CALL` to each call of `kd.distill`. The images and the
published network, which a reader has or fetches, are put where the README says.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from unittest import mock

import numpy as np
import pytest
from absl import flags

import kd_jax as kd
from documents import WAYS, blocks, flags_of
from helpers import ROOT
from image_folders import make_folder
from kd_jax.config import checks, overrides
from kd_jax.study import spec

README = blocks(ROOT / "README.md")
TUTORIAL = blocks(ROOT / "docs" / "tutorial.md")
ALL = [block for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
       for block in blocks(path)]  # fmt: skip
STEPS = ("--config.total_steps=2", "--config.batch_size=8", "--config.num_devices=1",
         "--config.teacher.on_mismatch=warn", "--config.warmup_epochs=0")  # fmt: skip
CIFAR = ("--config.dataset.train_split=train[:1%]", "--config.dataset.test_split=test[:1%]",
         "--config.dataset.val_examples=50")  # fmt: skip
SMALL = {"kd_jax.main": STEPS, "kd_jax.export": ("--images=8",)}
SMALL_CALL = {"steps": 2, "batch_size": 8, "num_devices": 1, "warmup_epochs": 0.0,
              "progress_line": False}  # fmt: skip


def python_commands(some_blocks):
    """Return the module and the arguments of each `python -m` of some blocks, with the block."""
    for block in some_blocks:
        if block.language not in ("", "bash"):
            continue
        for words in block.commands():
            if words[:2] == ["python", "-m"] and words[2].startswith("kd_jax"):
                yield block, words[2], words[3:]


def is_abridged(arguments):
    """Tell whether a command stands for many: `DIR`, `NAME`, `...` and a shell's variables."""
    return any(re.search(r"\.\.\.|\$|[A-Z]{3,}|\[", word) for word in arguments)


def test_every_block_says_how_it_is_tested():
    assert {block.way for block in ALL} <= set(WAYS)
    for block in README + TUTORIAL:
        assert block.language in ("bash", "python"), f"{block}: neither bash nor python"
    assert sum(block.way == "run" for block in README) >= 6


@pytest.mark.parametrize(
    ("block", "module", "arguments"),
    [pytest.param(*each, id=f"{each[0]}-{each[1]}-{number}")
     for number, each in enumerate(python_commands(ALL))],
)  # fmt: skip
def test_flags_fields_and_configs_of_a_command_are_there(block, module, arguments):
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if module == "kd_jax.launch":
        check_command("kd_jax.main", arguments[end + 1 :])
    check_command(module, arguments[:end])


def check_command(module, arguments):
    known = flags_of(module)
    for word in arguments:
        if not word.startswith("--"):
            continue
        name = re.match(r"--(?:no)?([\w]*)", word)[1]
        assert name in known or name.removeprefix("no") in known, f"{module} has no flag --{name}"
    configs = [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    if configs and not is_abridged(arguments):
        if module == "kd_jax.study":
            spec.load(configs[-1])
        else:
            own = [word for word in arguments if re.match(r"--(no)?config[.=]", word)]
            overrides.check(own)
            values = flags.FlagValues()
            overrides.define(values, ["main", *own])
            values(["main", *own])
            if "--plan" not in arguments:  # which needs no teacher's weights
                checks.check(values.config)


@pytest.mark.parametrize(
    "block", [b for b in ALL if (b.language, b.way) == ("python", "run")], ids=str
)
def test_names_of_the_package_in_python_are_public(block):
    tree = ast.parse(block.text)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {node.attr for node in attributes if getattr(node.value, "id", "") == "kd"}
    assert names <= set(kd.__all__)


def test_targets_of_make_and_extras_of_pip_are_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")]
    texts += [path.read_text() for path in (ROOT / "docs").glob("*.md")]
    for text in texts:
        assert set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", text, re.MULTILINE)) <= {
            (name, "") for name in targets
        } | {("", name) for name in targets}
        for extras in re.findall(r"(?:'\.|kd_jax)\[([\w,]+)\]'", text):
            assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_what_the_readme_writes_is_ignored_by_git():
    places = set()
    for _, _, arguments in python_commands(README + TUTORIAL):
        for word in arguments:
            name, _, value = word.partition("=")
            if name in ("--workdir", "--out", "--csv", "--config.dataset.data_dir"):
                places.add(value)
    done = subprocess.run(
        ["git", "check-ignore", *(f"{place}/x" for place in places), *places],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 128:
        pytest.skip("no git repository here")
    ignored = {line.removesuffix("/x") for line in done.stdout.splitlines()}
    assert places <= ignored


def test_the_figure_shows_what_the_runs_measured():
    from docs.figures import demo

    svg = (ROOT / "docs" / "figures" / "demo.svg").read_text()
    readme = (ROOT / "README.md").read_text()
    for part, label, _ in demo.PARTS:
        mean = f"{np.mean(demo.accuracies(part)):.2f} %"
        assert mean in svg
        assert mean in readme
        assert label in svg


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Return a folder with what a reader of the README has: configs, images, a PyTorch file."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(ROOT / "configs")
    classes = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
    make_folder(folder / "my_images", count=12, classes=classes)
    make_folder(folder / "new", count=1, classes=classes[:2])
    (folder / "new" / "train").rename(folder / "new_images")
    return folder


def run_block(block, desk, teacher_dir):
    for words in block.commands():
        assert words[0] == "python", words
        module, arguments = words[2], words[3:]
        small = () if "--plan" in arguments else SMALL.get(module, ())
        if small == STEPS and any("configs/resnet44.py" in word for word in arguments):
            small += CIFAR
        if "--src=published" in arguments:
            small += (f"--src={teacher_dir}/cifar100_resnet44.pth",)
        done = subprocess.run(
            [sys.executable, *words[1:3], *arguments, *small], cwd=desk, capture_output=True,
            text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, f"{block}: {' '.join(words)}\n{done.stderr[-2000:]}"


def run_python(block, desk, monkeypatch):
    monkeypatch.chdir(desk)
    real = kd.distill

    def small_distill(*arguments, **options):
        options = {k: v for k, v in options.items() if k not in ("epochs", "steps")}
        return real(*arguments, **(options | SMALL_CALL))

    names = {}
    with mock.patch.object(kd, "distill", small_distill, create=True):
        exec(compile(block.text, str(block), "exec"), names)
    return names


def run_all(some_blocks, desk, teacher_dir, monkeypatch):
    for block in some_blocks:
        if block.way == "run" and block.language == "bash":
            run_block(block, desk, teacher_dir)
        elif block.way == "run":
            run_python(block, desk, monkeypatch)


@pytest.mark.proof
def test_the_readme_is_run_as_written(desk, cifar100_dir, teacher_dir, monkeypatch):
    run_all(README, desk, teacher_dir, monkeypatch)
    for name in ("student.onnx", "report.html", "runs.csv", "runs/my_student/model.safetensors",
                 "runs/resnet44/result.json", "runs/net/result.json"):  # fmt: skip
        assert (desk / name).is_file(), name


@pytest.mark.proof
def test_the_tutorial_is_run_as_written(tmp_path, teacher_dir, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run_all(TUTORIAL, tmp_path, teacher_dir, monkeypatch)
