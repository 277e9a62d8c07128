"""Studies: who takes which run, and what is left after every kind of end."""

import errno
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from commands import Command
from helpers import run, tree_digest, wait_for
from kd_jax import config as config_lib
from kd_jax.config import default_config
from kd_jax.report import statistics
from kd_jax.runtime.atomic_files import read_json, read_json_lines
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StopRequest
from kd_jax.study import __main__, groups, lease_files, spec, worker
from kd_jax.study.leases import Leases
from kd_jax.training import cohort, workdir

# A teacher, two rows of two students, and one whose teacher's weights are nowhere.
TINY = """
from kd_jax.study import spec as runs
from kd_jax.config import default_config

def digits(steps):
    config = default_config()
    config.dataset.name = "digits"
    config.dataset.val_examples = 144
    config.student.arch = "resnet8"
    config.batch_size = 32
    config.total_steps = steps
    config.learning_rate = 3e-3
    config.log_every_steps = 5
    config.checkpoint_every_steps = 5
    config.eval_every_epochs = 1000.0
    config.num_devices = 1
    return config

def get_study(argument=""):
    chosen = runs.options(argument, steps=25, seeds=2)
    teacher = digits(40)
    teacher.distill.label_weight = 1.0
    teacher.mixup.kind = "none"
    student = digits(chosen["steps"])
    student.teacher.arch = "resnet8"
    listed = runs.of_seeds("lost", student, 1) + runs.of_seeds("teacher", teacher, 1)
    for row, config in runs.grid(student, {"distill.temperature": (2.0, 8.0)}).items():
        listed += runs.of_seeds(row, config, chosen["seeds"], teacher="teacher-s0", published=40.0)
    return runs.Study("Tiny", tuple(listed), "distill.temperature=2.0")
"""
STUDENTS = [f"distill.temperature={t}-s{seed}" for t in ("2.0", "8.0") for seed in (0, 1)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """The study's directory after one start, and what that said."""
    root = tmp_path_factory.mktemp("studies") / "the study's directory"
    return root, run("kd_jax.study", f"--config={tiny}", f"--workdir={root}")


@pytest.fixture
def half_done(unbroken, tmp_path):
    """The same study when only its teacher is trained."""
    shutil.copytree(unbroken[0], tmp_path / "half")
    for name in STUDENTS:
        shutil.rmtree(tmp_path / "half" / "runs" / name)
    return tmp_path / "half"


def tables(root):
    return (root / "table.md").read_text(), read_json(root / "summary.json")


def assert_same_table(root, other, rtol=1e-3):
    """Equal to float tolerance: who is trained together, and from where, depends on the kills."""
    ours, theirs = (tables(directory)[1]["rows"] for directory in (root, other))
    assert [(r["row"], r["runs"], r["missing"]) for r in ours] == [
        (r["row"], r["runs"], r["missing"]) for r in theirs
    ]
    for one, two in zip(ours, theirs, strict=True):
        for seed, top1 in one["test_top1"]["by_seed"].items():
            assert top1 == pytest.approx(two["test_top1"]["by_seed"][seed], abs=2.0)
    for name in ("teacher-s0", *STUDENTS):
        ours, theirs = (
            [r["loss"] for r in read_json_lines(d / "runs" / name / "metrics.jsonl") if "loss" in r]
            for d in (root, other)
        )
        np.testing.assert_allclose(ours, theirs, rtol=rtol)


def starts(root, name):
    """The steps from which a run was started or resumed."""
    return [record["step"] for record in read_json(root / "runs" / name / "provenance.json")]


def checkpoints(root, name="*"):
    """How many whole checkpoints there are, of one run or of all."""
    return sum(path.name.isdecimal() for path in root.glob(f"runs/{name}/checkpoints/*"))


def lease_contents(root, name):
    paths = sorted((root / "claims" / name).glob("*.json"), key=lambda path: int(path.stem))
    return [lease_files.read(path) for path in paths]  # {} while it is being written


def test_a_failed_run_is_named_and_the_others_finish(unbroken):
    root, done = unbroken
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "failed: lost-s0: no weights for its teacher resnet8: give --teachers=DIR"
    )
    for name in ("teacher-s0", *STUDENTS):
        assert read_json(root / "runs" / name / "result.json")["steps"] in (25, 40)
        assert [record["ended"] for record in lease_contents(root, name)] == ["done"]
    table, summed = tables(root)
    assert table.split("\n", 2)[2].strip() in done.stdout
    assert [row["row"] for row in summed["rows"]] == [
        "lost", "teacher", "distill.temperature=2.0", "distill.temperature=8.0"
    ]  # fmt: skip
    assert [len(row["missing"]) for row in summed["rows"]] == [1, 0, 0, 0]
    assert summed["rows"][3]["test_top1"]["difference"]["n"] == 2
    assert f"page: {root}/report.html" in done.stdout
    assert "<svg" in (root / "report.html").read_text()


def test_the_next_start_tries_it_again_and_leaves_what_is_done(unbroken, tiny, tmp_path):
    root = tmp_path / "again"
    shutil.copytree(unbroken[0], root)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet8").symlink_to(unbroken[0] / "runs" / "teacher-s0")
    before = {name: tree_digest(root / "runs" / name) for name in STUDENTS}
    done = run("kd_jax.study", f"--config={tiny}", f"--workdir={root}",
               f"--teachers={tmp_path}/weights")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("---") == 1
    assert read_json(root / "runs" / "lost-s0" / "teacher.json")["arch"] == "resnet8"
    assert not (root / "failed" / "lost-s0.json").exists()
    assert {name: tree_digest(root / "runs" / name) for name in STUDENTS} == before
    assert not any(row["missing"] for row in tables(root)[1]["rows"])


def test_two_processes_share_the_runs_and_one_takes_over_from_the_other(half_done, unbroken, tiny):
    arguments = ("kd_jax.study", f"--config={tiny}", f"--workdir={half_done}")
    before = len(lease_contents(half_done, STUDENTS[0]))
    first, second = Command(*arguments), Command(*arguments)
    owners = {}

    def both_train():
        for name in STUDENTS:
            leases = lease_contents(half_done, name)
            if len(leases) > before and "process" in leases[-1]:
                saved = checkpoints(half_done, name)
                owners[leases[-1]["process"]] = (name, saved > 0 and "ended" not in leases[-1])
        return set(owners) >= {first.pid, second.pid} and owners[first.pid][1]

    wait_for(both_train, second)
    killed = owners[first.pid][0]
    first.kill()
    first.communicate()
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 1, errors
    by_whom = {
        name: [r["process"] for r in lease_contents(half_done, name)[before:]] for name in STUDENTS
    }
    for name in STUDENTS:
        if name == killed:
            assert by_whom[name] == [first.pid, second.pid]
            assert len(starts(half_done, name)) == 2
            assert starts(half_done, name)[1] > 0
        elif by_whom[name] != [first.pid, second.pid]:  # or it was in the cohort of the killed one
            assert len(by_whom[name]) == 1
            assert starts(half_done, name) == [0]
    assert_same_table(half_done, unbroken[0])


@pytest.mark.slow
def test_stray_files_and_failing_writes_among_the_leases(half_done, unbroken, tiny, monkeypatch):
    monkeypatch.setattr("kd_jax.study.leases._REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    failures = {"utime": 0, "listdir": 0, "replace": 0}

    def sometimes(name, call):
        def wrapper(path, *more, **options):
            if "claims" in str(path):
                failures[name] += 1
                for stray in ("._1.json", "1 (1).json", ".DS_Store"):
                    if Path(path).is_dir():
                        (Path(path) / stray).touch()
                if failures[name] % 3:
                    raise OSError(errno.EIO, "Input/output error")
            return call(path, *more, **options)

        return wrapper

    for name in failures:
        monkeypatch.setattr(os, name, sometimes(name, getattr(os, name)))
    with Leases(half_done, 600, pytest.fail) as leases:
        study = spec.load(str(tiny))
        worker.create(study, half_done, None, 8, leases, StopRequest()).work()
    assert min(failures.values()) > 3
    monkeypatch.undo()
    statistics.write(half_done)
    assert_same_table(half_done, unbroken[0], rtol=1e-2)  # four devices here, there one a core


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_table(unbroken, tiny, tmp_path):
    root = tmp_path / "killed"
    arguments = ("kd_jax.study", f"--config={tiny}", f"--workdir={root}")
    for name in [signal.SIGKILL] * 5 + [signal.SIGTERM]:
        process = Command(*arguments)
        at = checkpoints(root)
        wait_for(lambda at=at: checkpoints(root) > at, process)
        process.send_signal(name)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (75 if name == signal.SIGTERM else -name), errors
    done = run(*arguments)
    assert done.returncode == 1, done.stderr
    assert_same_table(root, unbroken[0])
    assert sum(len(starts(root, name)) for name in ("teacher-s0", *STUDENTS)) >= 5 + 5


def test_a_run_may_be_added_and_none_may_change(unbroken, tiny, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(unbroken[0], root)
    before = tree_digest(root)
    changed = run("kd_jax.study", f"--config={tiny}:steps=26", f"--workdir={root}")
    assert changed.returncode == 2
    assert "total_steps: 25 -> 26" in changed.stderr.splitlines()[-1]
    assert len(changed.stderr.splitlines()) == 1
    assert tree_digest(root) == before
    more = spec.load(f"{tiny}:seeds=3")
    __main__.check(root, more)
    __main__.begin(root, more)
    listed = [entry["name"] for entry in read_json(root / "study.json")["runs"]]
    assert [name for name in listed if name.endswith("-s2")] == [
        "distill.temperature=2.0-s2", "distill.temperature=8.0-s2"
    ]  # fmt: skip


def test_a_study_does_not_move_into_other_files(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    listed = spec.load(str(tiny))
    with pytest.raises(UserError, match=r"holds other files and no study\.json"):
        __main__.check(tmp_path, listed)
    with pytest.raises(UserError, match="is a file: expected a directory"):
        __main__.check(tmp_path / "file", listed)


def test_a_table_is_not_of_two_trajectories(tiny, tmp_path):
    listed = spec.load(str(tiny))
    __main__.begin(tmp_path, listed)
    place = tmp_path / "runs" / listed.runs[-1].name
    workdir.create(place, listed.runs[-1].config)
    __main__.check(tmp_path, listed)
    (place / "provenance.json").write_text('[{"step": 0, "devices": 1}]')
    with pytest.raises(UserError, match=rf"the run in {place} is of version 1 of the trajectory"):
        __main__.check(tmp_path, listed)


def test_what_belongs_together_is_acquired_and_trained_together(unbroken, tmp_path, monkeypatch,
                                                              caplog):  # fmt: skip
    """And where that fails, each alone: the one that cannot be is named, the other is trained."""
    logger.propagate = True
    caplog.set_level(logging.INFO, "kd_jax")
    monkeypatch.setattr(cohort, "key", lambda config: "the same")
    weights = str(unbroken[0] / "runs" / "teacher-s0")
    config = config_lib.from_json((unbroken[0] / "runs" / STUDENTS[0] / "config.json").read_text())
    config.teacher.weights, config.total_steps = weights, 6
    listed = []
    for temperatures in ((3.0, 4.0), (3.0, -1.0)):
        configs = spec.grid(config, {"distill.temperature": temperatures})
        listed = [spec.Run(spec.slug(row), row, config) for row, config in configs.items()]
        root = tmp_path / str(temperatures[1])
        with Leases(root, 600, pytest.fail) as leases:
            study = spec.Study("", tuple(listed))
            process = worker.create(study, root, None, 8, leases, StopRequest())
            assert len(process.groups) == 1
            process.work()
            assert [process.is_done(one) for one in listed] == [True, temperatures[1] > 0]
    assert "--- together: distill.temperature=3.0, distill.temperature=4.0" in caplog.text
    assert "so one after another" in caplog.text
    assert "temperature is -1" in process.failure(listed[1])["error"]


def test_groups_are_of_one_key_and_not_too_large():
    keys = {"a": "x", "b": None, "c": "x", "d": "y", "e": "x", "f": None}
    listed = [spec.Run(name, name, default_config()) for name in keys]

    def grouped(most):
        found = groups.group_runs(listed, most, lambda one: keys[one.name])
        return ["".join(one.name for one in group) for group in found]

    assert grouped(8) == ["ace", "b", "d", "f"]
    assert grouped(2) == ["ac", "b", "d", "e", "f"]
    assert grouped(1) == list("abcdef")
