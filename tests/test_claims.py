"""Who has a run of a study: one process at a time, whatever happens to the others."""

import json
import os
import shutil
import subprocess
import threading
import time

import pytest

from kd_jax import claims
from kd_jax.files import read_json


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_claim(root, name, **said):
    path = root / "claims" / name / "1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": claims.machine(), "process": os.getpid(), **said}))
    return path


def test_a_claim_is_one_processs_until_it_ends_dies_or_falls_silent(tmp_path):
    with claims.Claims(tmp_path, 60, pytest.fail) as own, \
            claims.Claims(tmp_path, 60, pytest.fail) as other:  # fmt: skip
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
    with claims.Claims(tmp_path, 60, pytest.fail) as own:
        assert (own.take("a"), own.tries("a")) == (3, 2)


def test_of_all_who_take_over_a_stale_claim_one_succeeds(tmp_path):
    dead = dead_process()
    for number in range(20):
        write_claim(tmp_path, f"run{number}", process=dead)
        barrier, took = threading.Barrier(8), []

        def take(number=number, barrier=barrier, took=took):
            own = claims.Claims(tmp_path, 60, pytest.fail)
            barrier.wait()
            took.append(own.take(f"run{number}"))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(took, key=str) == [2] + [None] * 7


def test_a_claim_is_kept_fresh_and_its_holder_hears_when_it_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_HEARTBEAT_SECONDS", 0.05)
    told, heard = [], threading.Event()

    def overtaken(name):
        told.append(name)
        heard.set()

    with claims.Claims(tmp_path, 60, overtaken) as own:
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
        assert told[0] == "a"
