"""Several processes train as one does, agree on when to stop, and do not wait for the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commands import Command
from helpers import run
from kd_jax.runtime import processes, supervise
from kd_jax.runtime.atomic_files import read_json, read_json_lines

SMALL = (
    "--config=configs/demo.py:teacher",
    "--config.total_steps=60",
    "--config.checkpoint_every_steps=10",
    "--config.log_every_steps=5",
    "--config.mixup.kind=batch",
)
FOUR = {"JAX_NUM_CPU_DEVICES": "4"}


def start_two(workdir, *more):
    """Start two processes of two devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for number in range(2):
        process = Command(
            "kd_jax.main", *SMALL, *more, f"--workdir={workdir}",
            f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={number}",
            environment={"JAX_NUM_CPU_DEVICES": "2"},
        )  # fmt: skip
        started.append(process)
    return started


def wait_for_step(workdir, step, started, seconds=180):
    deadline = time.monotonic() + seconds
    while not any(r["step"] >= step for r in read_json_lines(workdir / "metrics.jsonl")):
        assert all(process.poll() is None for process in started), started[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finish(started, seconds=180):
    said = [process.communicate(timeout=seconds) for process in started]
    return [process.returncode for process in started], said


def losses(workdir):
    records = read_json_lines(workdir / "metrics.jsonl")
    return {r["step"]: r["loss"] for r in records if r["kind"] == "train"}


def bits(workdir):
    return (workdir / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The workdir of two processes that nothing happened to, and what they said."""
    workdir = tmp_path_factory.mktemp("two") / "unbroken"
    codes, said = finish(start_two(workdir))
    assert codes == [0, 0], said
    return workdir, said


@pytest.mark.slow
def test_two_processes_train_as_one_does(unbroken, tmp_path):
    workdir, said = unbroken
    alone = tmp_path / "alone"
    done = run("kd_jax.main", *SMALL, f"--workdir={alone}", environment=FOUR)
    assert done.returncode == 0, done.stderr
    together, one = losses(workdir), losses(alone)
    assert together.keys() == one.keys()
    # Step by step rounding alone tells them apart, until a unit near zero falls on another side.
    np.testing.assert_allclose([*together.values()][:1], [*one.values()][:1], rtol=1e-5)
    np.testing.assert_allclose([*together.values()], [*one.values()], rtol=2e-2)
    assert json.loads(said[0][0].splitlines()[-1])["steps"] == 60
    # The second process has nothing to say; gloo's greeting goes to stdout in both.
    assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())
    assert "step 10/60" not in said[1][1]
    assert read_json(workdir / "provenance.json")[0]["devices"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.proof)])
def test_when_one_is_killed_the_other_says_so_and_the_run_resumes(victim, unbroken, tmp_path):
    workdir = tmp_path / "w"
    started = start_two(workdir)
    wait_for_step(workdir, 25, started)
    started[victim].kill()
    killed = time.monotonic()
    codes, said = finish(started, seconds=60)
    assert time.monotonic() - killed < 60
    assert codes[1 - victim] == supervise.EXIT_PEER_GONE
    assert "error: another process of this run is gone" in said[1 - victim][1]
    assert "Traceback" not in said[1 - victim][1]
    codes, said = finish(start_two(workdir))
    assert codes == [0, 0], said
    assert bits(workdir) == bits(unbroken[0])
    assert losses(workdir) == losses(unbroken[0])
    assert read_json(workdir / "provenance.json")[1]["step"] >= 10


@pytest.mark.slow
def test_a_signal_to_one_stops_all_in_the_same_step(unbroken, tmp_path):
    workdir = tmp_path / "w"
    started = start_two(workdir)
    wait_for_step(workdir, 15, started)
    started[1].send_signal(signal.SIGTERM)
    codes, said = finish(started, seconds=60)
    assert codes == [75, 75], said
    sentences = [errors.splitlines()[-1] for _, errors in said]
    assert sentences[0] == sentences[1]
    assert "stopped by a signal to one of its processes at step" in sentences[0]
    # One process of four devices goes on with it, equal to float tolerance.
    done = run("kd_jax.main", *SMALL, f"--workdir={workdir}", environment=FOUR)
    assert done.returncode == 0, done.stderr
    together, alone = losses(unbroken[0]), losses(workdir)
    assert together.keys() == alone.keys()
    np.testing.assert_allclose([*alone.values()], [*together.values()], rtol=2e-2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_silent_process_counts_as_gone(tmp_path):
    started = start_two(tmp_path / "w", "--config.total_steps=100000")
    wait_for_step(tmp_path / "w", 15, started)
    parent = started[1].pid
    worker = int(Path(f"/proc/{parent}/task/{parent}/children").read_text())
    os.kill(worker, signal.SIGSTOP)
    try:
        _, errors = started[0].communicate(timeout=60)
    finally:
        started[1].kill()
        started[1].communicate()
    assert started[0].returncode == supervise.EXIT_PEER_GONE
    assert "error: another process of this run is gone" in errors.splitlines()[-1]


@pytest.mark.slow
def test_launch_marks_lines_and_ends_all_when_one_ends_badly(tmp_path):
    done = run("kd_jax.launch", "--processes=2", "--devices_per_process=1", "--", *SMALL,
               f"--workdir={tmp_path}", "--config.total_steps=12")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.removeprefix("[0] "))["steps"] == 12
    assert "[0] " in done.stderr
    (tmp_path / "provenance.json").unlink()
    # What only the first process can see is told by both.
    done = run("kd_jax.launch", "--processes=2", "--devices_per_process=1", "--", *SMALL,
               f"--workdir={tmp_path}", "--config.total_steps=12", "--config.seed=5")  # fmt: skip
    assert done.returncode == 2
    for number in range(2):
        assert f"[{number}] error: the workdir {tmp_path} belongs to a run of another config" in (
            done.stderr
        )
    assert "Traceback" not in done.stderr


def test_one_process_asks_nobody(tmp_path):
    assert processes.count() == 1
    assert processes.is_first()
    tree = {"a": np.arange(3)}
    assert processes.tree_from_first(tree) is tree
    assert processes.on_first(lambda: [1, "a"]) == [1, "a"]
    # Importing must not look for devices: it would be too early for `join`.
    code = (
        "from kd_jax.runtime import processes; from kd_jax.training import train; import jax;"
        "assert processes.count() == 1;"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
