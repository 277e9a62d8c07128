"""What a command does before it computes (help, names, wrong input), all without importing JAX."""

import subprocess
import sys

import pytest

import commands
from helpers import ROOT

# Imports of these raise ModuleNotFoundError, which is a traceback and exit code 1.
CODE = """
import runpy, sys
sys.modules |= dict.fromkeys(("jax", "flax", "optax", "orbax", "tensorflow"))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
DEMO = "--config=configs/demo.py:teacher"
PLACE = "--workdir=runs/never made"
WRONG = {
    "unknown flag": ("kd_jax.main", "--confg=configs/demo.py"),
    "flag of another type": ("kd_jax.main", DEMO, "--processes=two"),
    "no workdir": ("kd_jax.main", DEMO),
    "absent config": ("kd_jax.main", "--config=configs/absent.py", PLACE),
    "wrong override": ("kd_jax.main", DEMO, PLACE, "--config.batchsize=2"),
    "wrong choice": ("kd_jax.main", DEMO, PLACE, "--config.distill.loss=kl"),
    "wrong range": ("kd_jax.main", DEMO, PLACE, "--config.student.dropout=2"),
    "wrong network": ("kd_jax.main", DEMO, PLACE, "--config.student.arch=resnet45"),
    "no recipe": ("kd_jax.recipes", "diff", "a", "b"),
    "no run": ("kd_jax.report", "--out=x.html"),
    "no study": ("kd_jax.summary", "runs/never made"),
    "unknown network": ("kd_jax.import_teacher", "--arch=resnet45", "--src=x", "--out=y"),
    "absent weights": ("kd_jax.import_teacher", "--arch=resnet20", "--src=x.pth", "--out=y"),
    "unknown split": ("kd_jax.evaluate", PLACE, "--split=dev"),
    "file as place of a probe": ("kd_jax.probe", PLACE, "--out=docs"),
    "unknown format": ("kd_jax.export", PLACE, "--out=x", "--format=h5"),
    "nothing to launch": ("kd_jax.launch",),
    "nothing to predict with": ("kd_jax.predict", "x.png"),
    "nothing to serve": ("kd_jax.serve", "--port=0"),
    "stray word": ("kd_jax.demo", "now"),
    "full place": ("kd_jax.torture", "--workdir=docs"),
}  # fmt: skip
COMMANDS = ("main", "launch", "demo", "evaluate", "probe", "import_teacher", "torture", "summary",
            "config", "recipes", "models", "report", "study", "export",
            "predict", "serve")  # fmt: skip


def run_without_jax(*arguments):
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=ROOT, capture_output=True, text=True,
        env=commands.variables({"GLIBC_TUNABLES": ""}),
    )  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_without_jax(name):
    done = run_without_jax(*WRONG[name])
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_given_without_jax(name):
    done = run_without_jax(f"kd_jax.{name}", "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m kd_jax.{name}" in done.stdout
    assert ("Flags:" in done.stdout) == (name not in ("config", "recipes"))


@pytest.mark.parametrize("arguments", [("config",), ("recipes",), ("recipes", "diff", "funmatch",
                                                                    "seed")])  # fmt: skip
def test_fields_and_recipes_are_printed_without_jax(arguments):
    name, *rest = arguments
    done = run_without_jax(f"kd_jax.{name}", *rest)
    assert done.returncode == 0, done.stderr
    assert "distill.squared_temperature" in done.stdout or "Beyer et al. 2021" in done.stdout


def test_the_fields_of_an_experiment_are_printed_with_its_values():
    every = run_without_jax("kd_jax.main", "--help_config")
    assert every.stdout == run_without_jax("kd_jax.config").stdout
    here = run_without_jax("kd_jax.main", DEMO, "--config.seed=7", "--help_config")
    assert "| `seed` | `0` | `7` | whole number in" in here.stdout
    assert "| `dataset.name` | `'cifar100'` | `'digits'` | a name |" in here.stdout


def test_help_behind_two_dashes_is_of_another_command():
    done = run_without_jax("kd_jax.main", "--", "--help")
    assert done.stderr.startswith("error: ")
