"""Who has a run of a study: one process at a time, whatever happens to the others."""

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
from kd_jax.study import leases
from kd_jax.study.leases import Leases


@pytest.fixture
def warned():
    """What our log says, in order."""
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


def write_claim(root, name, **said):
    path = root / "claims" / name / "1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": leases.machine(), "process": os.getpid(), **said}))
    return path


def test_a_claim_is_one_processs_until_it_ends_dies_or_falls_silent(tmp_path):
    with Leases(tmp_path, 60, pytest.fail) as own, \
            Leases(tmp_path, 60, pytest.fail) as other:  # fmt: skip
        assert own.take("a") == 1
        assert other.take("a") is None
        assert other.holder("a") == f"process {os.getpid()} on {os.uname().nodename}"
        own.release("a", "failed")
        assert other.holder("a") is None
        assert other.take("a") == 2
        assert (own.take("a"), own.tries("a")) == (None, 2)
        write_claim(tmp_path, "dead", process=dead_process())
        assert own.take("dead") == 2
        path = write_claim(tmp_path, "elsewhere", machine="another one", process=1)
        assert own.take("elsewhere") is None
        os.utime(path, (time.time() - 61,) * 2)
        assert own.take("elsewhere") == 2
        (tmp_path / "claims" / "begun").mkdir()
        (tmp_path / "claims" / "begun" / "1.json").touch()  # made, and not written yet
        assert own.take("begun") is None
    assert read_json(tmp_path / "claims" / "a" / "2.json")["ended"] == "stopped"
    with Leases(tmp_path, 60, pytest.fail) as own:
        assert (own.take("a"), own.tries("a")) == (3, 2)


def test_of_all_who_take_over_a_stale_claim_one_succeeds(tmp_path):
    dead = dead_process()
    for number in range(20):
        write_claim(tmp_path, f"run{number}", process=dead)
        barrier, took = threading.Barrier(8), []

        def take(number=number, barrier=barrier, took=took):
            own = Leases(tmp_path, 60, pytest.fail)
            barrier.wait()
            took.append(own.take(f"run{number}"))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(took, key=str) == [2] + [None] * 7


def test_a_claim_is_kept_fresh_and_its_holder_hears_when_it_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_HEARTBEAT_SECONDS", 0.05)
    told, heard = [], threading.Event()

    def lost(name, why):
        told.append((name, why))
        heard.set()

    with Leases(tmp_path, 60, lost) as own:
        own.take("a")
        path = tmp_path / "claims" / "a" / "1.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > time.time() - 60
        assert not told
        shutil.copy(path, path.with_name("2.json"))
        assert heard.wait(10)
        assert told[0][0] == "a"
        assert "taken over by another process" in told[0][1]


STRAYS = ("._1.json", "1 (copy).json", "01.json", ".DS_Store", "new.json", "2.json.partial")


def broken(*_, **__):
    raise OSError(errno.EIO, "Input/output error")


def test_stray_files_are_no_claims(tmp_path):
    with Leases(tmp_path, 60, pytest.fail) as own:
        folder = tmp_path / "claims" / "a"
        folder.mkdir(parents=True)
        for name in STRAYS:
            (folder / name).write_text("{}")
        assert own.holder("a") is None
        assert own.take("a") == 1
        os.utime(folder / "1.json", (0, 0))
        own.beat()
        assert (folder / "1.json").stat().st_mtime > time.time() - 60
        assert (own.take("a"), own.tries("a")) == (None, 1)
        own.release("a", "done")
        assert (own.take("a"), own.tries("a")) == (2, 2)


@pytest.mark.parametrize("call", ["utime", "listdir"])
def test_a_heart_goes_on_beating_when_the_place_fails(call, tmp_path, monkeypatch, warned):
    own = Leases(tmp_path, 60, pytest.fail)
    own.take("a")
    path = tmp_path / "claims" / "a" / "1.json"
    os.utime(path, (0, 0))
    with monkeypatch.context() as failing:
        failing.setattr(os, call, broken)
        own.beat()
        own.beat()  # said once a minute, not at each beat
        assert (own.holder("a"), own.tries("a")) == (None, 0 if call == "listdir" else 1)
    assert [text.split(":")[0] for text in warned] == [
        "the claim on a cannot be kept fresh ([Errno 5] Input/output error)"
    ]
    own.beat()
    assert path.stat().st_mtime > time.time() - 60
    assert warned[1] == "the claim on a is fresh again"


def test_a_claim_out_of_reach_for_too_long_counts_as_lost(tmp_path, monkeypatch, warned):
    told = []
    own = Leases(tmp_path, 60, lambda *said: told.append(said))
    own.take("a")
    monkeypatch.setattr(os, "utime", broken)
    own.beat()
    assert not told
    assert len(warned) == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 51)  # two beats before others may take it
    own.beat()
    ((name, why),) = told
    assert name == "a"
    assert "could not be kept for 51 s, and others may take it over ([Errno 5]" in why


@pytest.mark.parametrize("made_again", [True, False])
def test_a_claim_that_was_removed_is_made_again_or_lost(made_again, tmp_path):
    told = []
    own = Leases(tmp_path, 60, lambda name, _: told.append(name))
    other = Leases(tmp_path, 60, pytest.fail)
    own.take("a")
    path = tmp_path / "claims" / "a" / "1.json"
    said = read_json(path)
    path.unlink()
    if made_again:
        assert other.take("a") == 1
    own.beat()
    assert told == ["a"] * made_again
    assert (read_json(path) == said) == (not made_again)
    other.beat()


def test_what_could_not_be_written_is_written_with_a_later_beat(tmp_path, monkeypatch, warned):
    own = Leases(tmp_path, 60, pytest.fail)
    path = tmp_path / "claims" / "a" / "1.json"
    with monkeypatch.context() as failing:
        failing.setattr("builtins.open", broken)
        assert (own.take("a"), own.take("a")) == (None, None)
    assert len(warned) == 1
    assert own.take("a") == 1
    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", broken)
        own.release("a", "done")
        own.beat()
        assert own.holder("a") is not None
    own.beat()
    assert read_json(path)["ended"] == "done"
    assert own.holder("a") is None


def test_a_disk_that_is_full_when_a_claim_is_made(tmp_path, monkeypatch, warned):
    own = Leases(tmp_path, 60, pytest.fail)
    with monkeypatch.context() as failing:
        failing.setattr(json, "dumps", broken)  # the file is made, and stays empty
        assert own.take("a") == 1
    assert Leases(tmp_path, 60, pytest.fail).take("a") is None
    own.beat()
    assert read_json(tmp_path / "claims" / "a" / "1.json")["process"] == os.getpid()


def test_a_place_that_will_never_do_is_one_sentence(tmp_path, monkeypatch, warned):
    (tmp_path / "claims").touch()
    own = Leases(tmp_path, 60, pytest.fail)
    with pytest.raises(UserError, match=r"claims/a cannot be written .*: make the place writable"):
        own.take("a")
    monkeypatch.setattr(os, "listdir", broken)
    assert own.take("b") is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    with pytest.raises(UserError, match=r"claims/b cannot be written \(Input/output error\)"):
        own.take("b")


def test_errors_hours_apart_are_no_lasting_one(tmp_path, monkeypatch, warned):
    """Between them the place was reached: another process had the run."""
    other = Leases(tmp_path, 1e9, pytest.fail)
    assert other.take("a") == 1
    own = Leases(tmp_path, 60, pytest.fail)
    now = time.monotonic()
    for hours in (0, 1):
        monkeypatch.setattr(time, "monotonic", lambda hours=hours: now + 3600 * hours)
        with monkeypatch.context() as failing:
            failing.setattr(os, "listdir", broken)
            assert own.take("a") is None
        assert own.take("a") is None  # it is held


@pytest.mark.parametrize("said", ["[]", '{"machine": 3}', '{"process": "x"}', '{"process": 1e99}'])
def test_a_claim_that_says_anything_goes_by_its_age(said, tmp_path):
    own = Leases(tmp_path, 60, pytest.fail)
    path = write_claim(tmp_path, "a")
    path.write_text(said)
    assert own.take("a") is None
    assert own.holder("a").startswith("process ")
    os.utime(path, (time.time() - 61,) * 2)
    assert own.take("a") == 2
