"""Leases on runs of a study: one process at a time, whatever happens to the others."""

import errno
import json
import logging
import os
import shutil
import subprocess
import threading
import time

import pytest

from kd_jax.runtime.atomic_files import read_json
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.study import lease_files
from kd_jax.study.leases import Leases


@pytest.fixture
def warned():
    """The warnings of our log, in order."""
    texts = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_lease(root, name, **content):
    path = root / "claims" / name / "1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": lease_files.machine(), "process": os.getpid(), **content})
    )
    return path


def test_a_lease_is_one_processs_until_it_ends_dies_or_falls_silent(tmp_path):
    with Leases(tmp_path, 60, pytest.fail) as leases, \
            Leases(tmp_path, 60, pytest.fail) as other:  # fmt: skip
        assert leases.acquire("a") == 1
        assert other.acquire("a") is None
        assert other.owner("a") == f"process {os.getpid()} on {os.uname().nodename}"
        leases.release("a", "failed")
        assert other.owner("a") is None
        assert other.acquire("a") == 2
        assert (leases.acquire("a"), leases.attempts("a")) == (None, 2)
        write_lease(tmp_path, "dead", process=dead_process())
        assert leases.acquire("dead") == 2
        path = write_lease(tmp_path, "elsewhere", machine="another one", process=1)
        assert leases.acquire("elsewhere") is None
        os.utime(path, (time.time() - 61,) * 2)
        assert leases.acquire("elsewhere") == 2
        (tmp_path / "claims" / "begun").mkdir()
        (tmp_path / "claims" / "begun" / "1.json").touch()  # made, and not written yet
        assert leases.acquire("begun") is None
    assert read_json(tmp_path / "claims" / "a" / "2.json")["ended"] == "stopped"
    with Leases(tmp_path, 60, pytest.fail) as leases:
        assert (leases.acquire("a"), leases.attempts("a")) == (3, 2)


def test_of_all_who_take_over_a_stale_lease_one_succeeds(tmp_path):
    dead = dead_process()
    for number in range(20):
        write_lease(tmp_path, f"run{number}", process=dead)
        barrier, numbers = threading.Barrier(8), []

        def acquire(number=number, barrier=barrier, numbers=numbers):
            leases = Leases(tmp_path, 60, pytest.fail)
            barrier.wait()
            numbers.append(leases.acquire(f"run{number}"))

        threads = [threading.Thread(target=acquire) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(numbers, key=str) == [2] + [None] * 7


def test_a_lease_is_kept_fresh_and_its_owner_hears_when_it_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("kd_jax.study.leases._REFRESH_SECONDS", 0.05)
    losses, was_called = [], threading.Event()

    def on_lost(name, reason):
        losses.append((name, reason))
        was_called.set()

    with Leases(tmp_path, 60, on_lost) as leases:
        leases.acquire("a")
        path = tmp_path / "claims" / "a" / "1.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > time.time() - 60
        assert not losses
        shutil.copy(path, path.with_name("2.json"))
        assert was_called.wait(10)
        assert losses[0][0] == "a"
        assert "taken over by another process" in losses[0][1]


STRAYS = ("._1.json", "1 (copy).json", "01.json", ".DS_Store", "new.json", "2.json.partial")


def broken(*_, **__):
    raise OSError(errno.EIO, "Input/output error")


def test_stray_files_are_no_leases(tmp_path):
    with Leases(tmp_path, 60, pytest.fail) as leases:
        folder = tmp_path / "claims" / "a"
        folder.mkdir(parents=True)
        for name in STRAYS:
            (folder / name).write_text("{}")
        assert leases.owner("a") is None
        assert leases.acquire("a") == 1
        os.utime(folder / "1.json", (0, 0))
        leases.refresh()
        assert (folder / "1.json").stat().st_mtime > time.time() - 60
        assert (leases.acquire("a"), leases.attempts("a")) == (None, 1)
        leases.release("a", "done")
        assert (leases.acquire("a"), leases.attempts("a")) == (2, 2)


@pytest.mark.parametrize("call", ["utime", "listdir"])
def test_a_heart_goes_on_beating_when_the_place_fails(call, tmp_path, monkeypatch, warned):
    leases = Leases(tmp_path, 60, pytest.fail)
    leases.acquire("a")
    path = tmp_path / "claims" / "a" / "1.json"
    os.utime(path, (0, 0))
    with monkeypatch.context() as failing:
        failing.setattr(os, call, broken)
        leases.refresh()
        leases.refresh()  # said once a minute, not at each beat
        assert (leases.owner("a"), leases.attempts("a")) == (None, 0 if call == "listdir" else 1)
    assert [text.split(":")[0] for text in warned] == [
        "the lease of a cannot be kept fresh ([Errno 5] Input/output error)"
    ]
    leases.refresh()
    assert path.stat().st_mtime > time.time() - 60
    assert warned[1] == "the lease of a is fresh again"


def test_a_lease_out_of_reach_for_too_long_counts_as_lost(tmp_path, monkeypatch, warned):
    losses = []
    leases = Leases(tmp_path, 60, lambda *loss: losses.append(loss))
    leases.acquire("a")
    monkeypatch.setattr(os, "utime", broken)
    leases.refresh()
    assert not losses
    assert len(warned) == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 51)  # two beats before others may take it
    leases.refresh()
    ((name, reason),) = losses
    assert name == "a"
    assert "could not be kept for 51 s, and others may take it over ([Errno 5]" in reason


@pytest.mark.parametrize("made_again", [True, False])
def test_a_lease_that_was_removed_is_made_again_or_lost(made_again, tmp_path):
    losses = []
    leases = Leases(tmp_path, 60, lambda name, _: losses.append(name))
    other = Leases(tmp_path, 60, pytest.fail)
    leases.acquire("a")
    path = tmp_path / "claims" / "a" / "1.json"
    content = read_json(path)
    path.unlink()
    if made_again:
        assert other.acquire("a") == 1
    leases.refresh()
    assert losses == ["a"] * made_again
    assert (read_json(path) == content) == (not made_again)
    other.refresh()


def test_what_could_not_be_written_is_written_with_a_later_beat(tmp_path, monkeypatch, warned):
    leases = Leases(tmp_path, 60, pytest.fail)
    path = tmp_path / "claims" / "a" / "1.json"
    with monkeypatch.context() as failing:
        failing.setattr("builtins.open", broken)
        assert (leases.acquire("a"), leases.acquire("a")) == (None, None)
    assert len(warned) == 1
    assert leases.acquire("a") == 1
    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", broken)
        leases.release("a", "done")
        leases.refresh()
        assert leases.owner("a") is not None
    leases.refresh()
    assert read_json(path)["ended"] == "done"
    assert leases.owner("a") is None


def test_a_disk_that_is_full_when_a_lease_is_made(tmp_path, monkeypatch, warned):
    leases = Leases(tmp_path, 60, pytest.fail)
    with monkeypatch.context() as failing:
        failing.setattr(json, "dumps", broken)  # the file is made, and stays empty
        assert leases.acquire("a") == 1
    assert Leases(tmp_path, 60, pytest.fail).acquire("a") is None
    leases.refresh()
    assert read_json(tmp_path / "claims" / "a" / "1.json")["process"] == os.getpid()


def test_a_place_that_will_never_do_is_one_sentence(tmp_path, monkeypatch, warned):
    (tmp_path / "claims").touch()
    leases = Leases(tmp_path, 60, pytest.fail)
    with pytest.raises(UserError, match=r"claims/a cannot be written .*: make the place writable"):
        leases.acquire("a")
    monkeypatch.setattr(os, "listdir", broken)
    assert leases.acquire("b") is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    with pytest.raises(UserError, match=r"claims/b cannot be written \(Input/output error\)"):
        leases.acquire("b")


def test_errors_hours_apart_are_no_lasting_one(tmp_path, monkeypatch, warned):
    """Between them the place was reached: another process had the run."""
    other = Leases(tmp_path, 1e9, pytest.fail)
    assert other.acquire("a") == 1
    leases = Leases(tmp_path, 60, pytest.fail)
    now = time.monotonic()
    for hours in (0, 1):
        monkeypatch.setattr(time, "monotonic", lambda hours=hours: now + 3600 * hours)
        with monkeypatch.context() as failing:
            failing.setattr(os, "listdir", broken)
            assert leases.acquire("a") is None
        assert leases.acquire("a") is None  # it is held


@pytest.mark.parametrize("text", ["[]", '{"machine": 3}', '{"process": "x"}', '{"process": 1e99}'])
def test_a_lease_that_says_anything_goes_by_its_age(text, tmp_path):
    leases = Leases(tmp_path, 60, pytest.fail)
    path = write_lease(tmp_path, "a")
    path.write_text(text)
    assert leases.acquire("a") is None
    assert leases.owner("a").startswith("process ")
    os.utime(path, (time.time() - 61,) * 2)
    assert leases.acquire("a") == 2
