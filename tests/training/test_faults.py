"""What may happen to a run: it stops with a sentence, nothing is lost, and it goes on."""

import dataclasses
import hashlib
import re
import signal
import subprocess
import time
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from commands import Command
from helpers import run, tree_digest, wait_for
from kd_jax import models
from kd_jax.runtime import atomic_files, quiet_tensorflow
from kd_jax.runtime.atomic_files import read_json, read_json_lines
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.training import provenance, saved_student, setup, trajectory, workdir
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config

TINY = (
    "--config=configs/demo.py:teacher",
    "--config.checkpoint_every_steps=10",
    "--config.log_every_steps=5",
    "--config.num_devices=2",
)


def start(workdir, *more):
    return Command("kd_jax.main", *TINY, *more, f"--workdir={workdir}")


@pytest.mark.slow
def test_killed_in_every_way_it_ends_in_the_same_bits(tmp_path):
    """While it starts, trains and saves, and asked to stop; `kd_jax.torture` does it at length."""
    options = ("--config.total_steps=60", "--config.checkpoint_every_steps=7")
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    first = start(unbroken, *options)
    first.communicate(timeout=300)
    log = killed / "metrics.jsonl"
    ways = {
        "starting": lambda _: (killed / "lock").exists(),
        "training": lambda size: len(read_json_lines(log)) > size + 1,  # step 10: one is saved
        "saving": lambda _: any(killed.glob("checkpoints/*.orbax-checkpoint-tmp*")),
        "SIGTERM": lambda size: len(read_json_lines(log)) > size,
    }
    for way, has_come in ways.items():
        size = len(read_json_lines(log))
        process = start(killed, *options)
        wait_for(lambda come=has_come, size=size: come(size), process, pause=0.001)
        process.send_signal(signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == (75 if way == "SIGTERM" else -signal.SIGKILL), way
    last = start(killed, *options)
    last.communicate(timeout=300)
    assert first.returncode == last.returncode == 0
    resumed = [start["step"] for start in read_json(killed / "provenance.json")]
    assert sum(step > 0 for step in resumed) >= 2
    assert metrics_of(killed) == metrics_of(unbroken)
    bits = [(place / "model.safetensors").read_bytes() for place in (killed, unbroken)]
    assert bits[0] == bits[1]


def metrics_of(workdir):
    """What was logged, without how fast it was."""
    records = read_json_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


@pytest.mark.proof
def test_the_torture_says_that_nothing_was_lost(tmp_path):
    done = run("kd_jax.torture", "--kills=4", f"--workdir={tmp_path}/torture")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills survived: 4 of 4; parameters bit-identical, metrics identical" in done.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_a_workdir_has_one_run(name, tmp_path):
    workdir = tmp_path / "läuft noch"
    process = start(workdir, "--config.total_steps=100000", "--config.checkpoint_every_steps=90000")
    wait_for(lambda: len(read_json_lines(workdir / "metrics.jsonl")) >= 2, process)
    second = run("kd_jax.main", *TINY, "--config.total_steps=100000",
                 "--config.checkpoint_every_steps=90000", f"--workdir={workdir}")  # fmt: skip
    assert second.returncode == 2
    assert f"in use by process {process.pid} on " in second.stderr
    asked = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert time.monotonic() - asked < 15
    stopped = re.search(rf"stopped by {name} at step (\d+): the same command resumes", errors)
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [stopped[1]]
    assert read_json_lines(workdir / "metrics.jsonl")[-1]["step"] <= int(stopped[1])


def catches(process, number):
    """Whether a process has a handler for a signal (proc(5), SigCgt)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_before_there_is_anything_to_save_a_signal_ends_it_at_once(tmp_path):
    process = start(tmp_path / "w", "--config.total_steps=100")
    wait_for(lambda: catches(process, signal.SIGTERM), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "stopped by SIGINT: the same command resumes" in errors


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(tmp_path):
    options = ("--config.optimizer.name=sgd", "--config.optimizer.clip_norm=0",
               "--config.total_steps=200", "--config.warmup_epochs=0",
               "--config.checkpoint_every_steps=1", "--config.eval_every_epochs=1000")  # fmt: skip
    done = run("kd_jax.main", *TINY, *options, "--config.learning_rate=1000",
               f"--workdir={tmp_path}/w")  # fmt: skip
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert re.search(r"error: (loss|grad_norm) is (nan|inf) at step \d+: ", error), error
    assert "try a lower config.learning_rate" in error
    step = int(re.search(r"at step (\d+)", error)[1])
    steps = [int(path.name) for path in (tmp_path / "w" / "checkpoints").iterdir()]
    assert max(steps, default=0) < step
    if steps:
        assert f"the checkpoint of step {max(steps)} is kept, it reaches" in error


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(small_disk):
    filler = small_disk / "filler"
    options = (
        "--config.total_steps=40",
        f"--workdir={small_disk}/w",
        "--config.keep_checkpoints=1",
    )
    filler.write_bytes(b"x" * 900_000)
    done = run("kd_jax.main", *TINY, *options)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert "resumes" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    filler.unlink()
    again = run("kd_jax.main", *TINY, *options)
    assert again.returncode == 0, again.stderr
    assert read_json(small_disk / "w" / "result.json")["steps"] == 40


def test_a_run_may_go_on_with_more_devices(tmp_path):
    train(digits_config(1), tmp_path / "one")
    for devices, steps in ((1, 8), (2, 9)):
        with pytest.raises(StoppedError):
            train(digits_config(devices), tmp_path / "grows", StopAfter(steps))
    train(digits_config(4), tmp_path / "grows")
    starts = read_json(tmp_path / "grows" / "provenance.json")
    assert [(s["step"], s["devices"]) for s in starts] == [(0, 1), (8, 2), (17, 4)]
    losses = [
        [r["loss"] for r in read_json_lines(tmp_path / name / "metrics.jsonl") if "loss" in r]
        for name in ("one", "grows")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    one, grows = (saved_network.load(tmp_path / name)[1] for name in ("one", "grows"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3), grows, one)


def test_without_synchronised_batch_norm_a_run_keeps_its_number_of_devices(tmp_path):
    def config(devices):
        config = digits_config(devices)
        config.batch_norm.sync = False
        return config

    with pytest.raises(StoppedError):
        train(config(2), tmp_path / "w", StopAfter(2))
    before = tree_digest(tmp_path / "w")
    with pytest.raises(
        UserError, match=r"began on 2 device\(s\), and these are 4: with .*sync=Fal"
    ):
        train(config(4), tmp_path / "w")
    assert tree_digest(tmp_path / "w") == before
    with pytest.raises(StoppedError):
        train(config(2), tmp_path / "w", StopAfter(2))
    run = setup.build(config(2))
    assert run.is_changed_by_devices
    without_norm = models.build("bit_r50x1", 10, (0.5,) * 3, (0.25,) * 3)
    assert not dataclasses.replace(run, student=without_norm).is_changed_by_devices
    assert not setup.build(digits_config(2)).is_changed_by_devices


def test_a_run_of_another_trajectory_is_not_resumed_but_read(tmp_path):
    """As kd_jax left it when nothing had a version: no mark, and one leaf less in the state."""
    config, place = digits_config(1), tmp_path / "w"
    run = setup.build(config)
    state = trajectory.as_saved(run.initial_state(), 1)
    workdir.create(place, config)
    provenance.add_start(place, 0, run.dataset.fingerprint, None, 1)
    starts = read_json(place / "provenance.json")
    assert starts[0].pop("trajectory") == 2
    atomic_files.write_json(place / "provenance.json", starts)
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    tree = {"state": state, "digest": np.frombuffer(digest.digest(), np.uint8)}
    with ocp.CheckpointManager(place / "checkpoints") as manager:
        manager.save(5, args=ocp.args.StandardSave(jax.tree.map(np.asarray, tree)))
    before = tree_digest(place)
    with pytest.raises(UserError, match=r"is of version 1 of the trajectory, .* \(the gradient is"):
        train(config, place)
    assert tree_digest(place) == before
    _, step, variables = saved_student.student(place, "last")
    assert step == 5
    jax.tree.map(np.testing.assert_array_equal, variables["params"], run.initial_state().params)
    # Without its provenance the checkpoint itself says it.
    (place / "provenance.json").unlink()
    with pytest.raises(UserError, match=r"is of version 1 of the trajectory"):
        train(config, place)


def test_a_run_refuses_other_data(tmp_path):
    with pytest.raises(StoppedError):
        train(digits_config(1), tmp_path / "w", StopAfter(2))
    path = tmp_path / "w" / "provenance.json"
    path.write_text(path.read_text().replace(read_json(path)[0]["data_fingerprint"], "0123"))
    before = tree_digest(tmp_path / "w")
    with pytest.raises(UserError, match="began on data with the fingerprint 0123"):
        train(digits_config(1), tmp_path / "w")
    assert tree_digest(tmp_path / "w") == before


def test_a_workdir_that_vanishes_is_one_sentence_and_goes_on_where_it_is_now(tmp_path):
    config = digits_config(1)
    config.checkpoint_every_steps = 5

    def vanish():
        (tmp_path / "w").rename(tmp_path / "moved")

    with pytest.raises(UserError, match=r"cannot be written .*the same command resumes"):
        train(config, tmp_path / "w", StopAfter(7, vanish))
    assert not (tmp_path / "w" / "config.json").exists()
    assert train(config, tmp_path / "moved")["steps"] == 30


def test_a_workdir_that_cannot_be_written_is_one_sentence(small_disk):
    config = digits_config(1)
    with pytest.raises(StoppedError):
        train(config, small_disk / "w", StopAfter(7))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
        train(config, small_disk / "w")
    with pytest.raises(UserError, match=r"disk cannot be written to"):
        train(config, small_disk / "new")
    subprocess.run(["mount", "-o", "remount,rw,size=50m", str(small_disk)], check=True)
    assert train(config, small_disk / "w")["steps"] == 30


def test_without_tensorboard_a_run_goes_on(tmp_path, caplog, monkeypatch):
    (tmp_path / "w").mkdir()
    config = digits_config(1)
    with pytest.raises(StoppedError):
        train(config, tmp_path / "w", StopAfter(2))
    monkeypatch.setattr(quiet_tensorflow, "import_metric_writers", lambda: import_module("no_tf"))
    logger.propagate = True
    assert train(config, tmp_path / "w")["steps"] == 30
    assert caplog.text.count("TensorBoard's files could not be written: No module named") == 1
    assert "pip install 'kd_jax[tfds]'" in caplog.text
