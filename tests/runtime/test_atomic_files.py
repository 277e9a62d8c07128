"""Small files: whole or not at all, whoever else writes them at the same time."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError
from kd_jax.study import __main__, lease_files
from kd_jax.training import workdir
from tiny_runs import digits_config

SIZE = 200_000
WRITER = """
import pathlib, sys
from kd_jax.runtime import atomic_files as files
for _ in range(300):
    files.write_whole(pathlib.Path(sys.argv[1]), sys.argv[2].encode() * int(sys.argv[3]))
"""


def left_by_a_killed_writer(directory, age=0.0):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".kd_jax-1-{'0123456789abcdef'}.partial"
    path.write_bytes(b"half of i")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def test_two_processes_write_one_file_and_a_reader_finds_it_whole(tmp_path):
    path = tmp_path / "x.json"
    atomic_files.write_whole(path, b"a" * SIZE)
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, letter, str(SIZE)]) for letter in "ab"]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert content in (b"a" * SIZE, b"b" * SIZE)
        reads += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads > 10
    assert os.listdir(tmp_path) == ["x.json"]


def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    atomic_files.write_whole(path, b"old")
    with contextlib.suppress(RuntimeError), atomic_files.replacing(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_name_has_as_many_letters_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("ü" * 127)
    atomic_files.write_whole(path, b"content")
    assert path.read_bytes() == b"content"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_its_directory(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("replace") or replace(a, b))
    atomic_files.write_whole(tmp_path / "x", b"content")
    assert re.fullmatch(rf"\.kd_jax-{os.getpid()}-\w{{16}}\.partial", events[0])
    assert events[1:] == ["replace", tmp_path.name]


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    left = left_by_a_killed_writer(tmp_path, age=600.0)
    atomic_files.write_whole(tmp_path / "x", b"content")
    assert left.exists()  # its writer may be alive
    left_by_a_killed_writer(tmp_path, age=4000.0)
    other = tmp_path / ".somebody.partial"
    other.write_text("else's")
    atomic_files.write_whole(tmp_path / "x", b"content")
    assert not left.exists()
    assert other.exists()


def test_a_run_that_was_killed_in_its_first_moment_begins_again(tmp_path):
    left = left_by_a_killed_writer(tmp_path / "w")
    (tmp_path / "w" / workdir.LOCK_FILE).touch()
    workdir.check(tmp_path / "w", digits_config(1))
    workdir.create(tmp_path / "w", digits_config(1))  # under its lock nobody else writes
    assert not left.exists()
    (tmp_path / "w" / workdir.CONFIG_FILE).unlink()
    (tmp_path / "w" / "thesis.partial").touch()
    with pytest.raises(UserError, match=r"holds other files and no config\.json"):
        workdir.check(tmp_path / "w", digits_config(1))


def test_a_study_that_was_killed_in_its_first_moment_begins_again(tmp_path):
    from kd_jax.study.spec import Study

    left_by_a_killed_writer(tmp_path)
    (tmp_path / lease_files.FOLDER).mkdir()
    __main__.check(tmp_path, Study("a study", ()))
    (tmp_path / "thesis.partial").touch()
    with pytest.raises(UserError, match=r"holds other files and no study\.json"):
        __main__.check(tmp_path, Study("a study", ()))


def test_a_file_that_is_read_is_not_written(tmp_path):
    (tmp_path / "x").write_text("x")
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "y").write_text("y")
    inputs = [tmp_path / "absent", tmp_path / "x"]
    atomic_files.check_not_read(tmp_path / "y", inputs, "--out")
    atomic_files.check_not_read(tmp_path / "absent", inputs, "--out")
    for output in (tmp_path / "x", tmp_path / "link", tmp_path / ".." / tmp_path.name / "x"):
        with pytest.raises(UserError, match=r"--out would take the place of .*x, which is"):
            atomic_files.check_not_read(output, inputs, "--out")
