"""The wheel, installed into a fresh environment and used from an empty folder."""

import json
import subprocess
import sys
import sysconfig
import venv
from types import SimpleNamespace

import pytest

import commands
from helpers import ROOT
from kd_jax.kernels import native


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return how to run a program of an environment that has the wheel, in an empty folder."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(place)],
        check=True,
    )
    venv.create(place / "venv")
    binaries = place / "venv" / "bin"
    (wheel,) = place.glob("*.whl")
    python = str(binaries / "python")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel)], check=True
    )
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    # The dependencies, of the environment that runs this. Its own .pth files, which name the
    # checkout, are not read, because only the folder is named here.
    with open(f"{packages}/dependencies.pth", "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    empty = place / "empty"
    empty.mkdir()

    def run(program, *arguments):
        command = [binaries / program, *arguments]
        return subprocess.run(
            list(map(str, command)), cwd=empty, env=commands.variables(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    return SimpleNamespace(run=run, folder=empty, packages=packages)


@pytest.mark.proof
def test_the_wheel_is_imported_and_brings_what_is_no_python(installed):
    code = (
        "import kd_jax; from kd_jax.kernels import native; "
        "print(kd_jax.__file__); print(native.digest())"
    )
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    file, digest = done.stdout.splitlines()
    assert file.startswith(installed.packages)
    # Compiled there too where it is here, from the same sources.
    assert digest == str(native.digest())
    assert "  study  " in installed.run("kd-jax").stdout


@pytest.mark.proof
def test_the_wheel_trains_a_teacher_and_a_student_by_the_names_of_its_configs(installed):
    def kd_jax(name, *arguments):
        done = installed.run("python", "-m", f"kd_jax.{name}", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    plan = kd_jax("main", "--config=kd_jax:resnet44", "--plan")
    assert "resnet44" in plan
    short = ("--config.total_steps=3", "--config.batch_size=32")
    kd_jax("main", "--config=kd_jax:demo:teacher", "--workdir=teacher",
           "--config.student.arch=resnet8", *short)  # fmt: skip
    said = kd_jax("main", "--config=kd_jax:demo:distil", "--workdir=student",
                  "--config.teacher.weights=teacher", "--config.student.arch=resnet8",
                  *short)  # fmt: skip
    assert json.loads(said.splitlines()[-1])["steps"] == 3
    kd_jax("report", "a=student", "b=teacher", "--out=report.html")
    assert "resnet8" in (installed.folder / "report.html").read_text()


@pytest.mark.proof
def test_a_file_of_the_repository_is_named_as_the_wheel_has_it(installed):
    done = installed.run("python", "-m", "kd_jax.main", "--config=configs/resnet44.py", "--plan")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("or kd_jax:resnet44, which comes with kd_jax")
