"""What is kept between runs: whole or not at all, cleaned of what was killed, within memory."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT
from image_folders import folder, make_folder, options
from kd_jax.data import decoded_cache, sources
from kd_jax.runtime import caches, memory, paths
from kd_jax.runtime.errors import UserError, reachable, run_command
from kd_jax.teachers import load
from kd_jax.training.train import train
from tiny_runs import digits_config


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The directory of decoded data sets."""
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "data").mkdir(parents=True)
    return tmp_path / "cache" / "data"


@pytest.fixture
def root(tmp_path):
    make_folder(tmp_path / "set", count=5, size=(8, 8))
    return tmp_path / "set"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_damaged_cache_is_decoded_anew(root, cache):
    fingerprint = folder(root).fingerprint()
    (kept,) = cache.iterdir()
    images = np.load(kept / "train_images.npy")
    images[0] += 1
    np.save(kept / "train_images.npy", images)
    assert folder(root).fingerprint() == fingerprint
    np.testing.assert_array_equal(np.load(kept / "train_images.npy")[0], images[0] - 1)
    (kept / "train_images.npy").write_bytes(b"")
    assert folder(root).fingerprint() == fingerprint
    (kept / "about.json").unlink()
    assert folder(root).fingerprint() == fingerprint
    assert names(cache) == [kept.name]  # nothing is left behind


def test_of_a_directory_that_changes_only_the_newest_set_is_kept(root, cache, tmp_path):
    make_folder(tmp_path / "other", count=5, size=(8, 8))
    folder(tmp_path / "other")
    (stays,) = names(cache)
    kept = []
    for when in (1_500_000_000, 1_600_000_000):
        os.utime(next(root.glob("train/*/*")), (when, when))
        folder(root)
        (own,) = set(names(cache)) - {stays}
        kept.append(own)
    assert kept[0] != kept[1]
    folder(root, image_size=4)
    assert {*kept[1:], stays} < set(names(cache))
    assert len(names(cache)) == 3


@pytest.mark.parametrize(("split", "times"), [("", 1), ("train", 2)])
def test_shards_copied_with_their_times_are_not_decoded_anew(split, times, tmp_path, cache):
    shard, copy, decoded_sets = tmp_path / "a.tfrecord", tmp_path / "copy", []
    shard.write_bytes(b"0")

    def decode():
        part = sources.Split(np.zeros((2, 4, 4, 3), np.uint8), np.arange(2))
        decoded_sets.append(sources.Source(part, part, 2))
        return decoded_sets[-1]

    for _ in range(2):
        decoded_cache.kept("set", [decoded_cache.File(shard, shard.stat(), split)], None, decode)
        shutil.copy2(shard, copy)
        copy.replace(shard)
        shard.chmod(0o600)
    assert len(decoded_sets) == times


KILLED = """
import os, signal, sys
from pathlib import Path
from kd_jax.runtime import caches
with caches.workspace(Path(sys.argv[1])) as own:
    (own / "made").mkdir()
    (own / "made" / "train_images.npy").write_bytes(b"half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("decoding", flush=True)
    sys.stdin.read()
"""


def start(cache, how):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(cache), how], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_what_a_kill_leaves_is_cleaned_by_the_next_start_and_what_is_being_made_stays(root, cache):
    assert start(cache, "killed").wait() == -signal.SIGKILL
    (left,) = names(cache)
    (cache / "making-begun").mkdir()  # killed before it had a lock
    alive = start(cache, "alive")
    assert alive.stdout.readline() == "decoding\n"
    (its,) = set(names(cache)) - {left, "making-begun"}
    folder(root)
    assert its in names(cache)
    assert (cache / its / "made" / "train_images.npy").read_bytes() == b"half"
    assert len(names(cache)) == 2
    folder(root)  # nothing to decode: it cleans and reads
    assert its in names(cache)
    alive.communicate("")
    assert alive.returncode == 0
    assert [name[:7] for name in names(cache)] == ["folder-"]


def test_what_earlier_versions_left_goes_when_it_is_old(root, cache):
    for name in ("tmpabcdefgh", "tmpabcdefgh-old", "tmpnew"):
        (cache / name).mkdir()
        if name != "tmpnew":  # which one of them may be making right now
            os.utime(cache / name, (time.time() - 90_000,) * 2)
    folder(root)
    assert [name[:6] for name in names(cache)] == ["folder", "tmpnew"]


def test_without_locks_age_tells(root, cache, monkeypatch):
    monkeypatch.setattr(caches, "fcntl", None)
    for name in ("making-old", "making-new"):
        (cache / name).mkdir()
    os.utime(cache / "making-old", (time.time() - 90_000,) * 2)
    folder(root)
    assert [name[:10] for name in names(cache) if name[:6] == "making"] == ["making-new"]


def test_a_workspace_that_was_cleaned_before_it_was_locked_is_made_anew(cache, monkeypatch):
    made, real = [], caches.tempfile.mkdtemp

    def mkdtemp(**options):
        made.append(real(**options))
        if len(made) == 1:
            caches.clean(cache)  # another process starts at this very moment
        return made[-1]

    monkeypatch.setattr(caches.tempfile, "mkdtemp", mkdtemp)
    with caches.workspace(cache) as own:
        assert [str(own)] == made[1:]
        caches.clean(cache)
        assert own.is_dir()
    assert names(cache) == []


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(root, cache):
    cache.rmdir()
    cache.write_text("no directory")
    assert len(folder(root).train) == 12


# Host memory


def group(root, path, limit, used, version=2):
    place = root / "sys/fs/cgroup" / ("" if version == 2 else "memory") / path
    place.mkdir(parents=True, exist_ok=True)
    files = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    (place / f"memory.{files[0]}").write_text(f"{limit}\n")
    (place / f"memory.{files[1]}").write_text(f"{used}\n")
    reclaimable = "inactive_file" if version == 2 else "total_inactive_file"
    (place / "memory.stat").write_text(f"anon 3\n{reclaimable} 50\n")


@pytest.mark.parametrize(("lines", "groups", "expected"), [
    ("0::/\n", [], 4_096_000),
    ("0::/a/b\n", [("a/b", "max", 7, 2)], 4_096_000),
    ("0::/a/b\n", [("a/b", "max", 7, 2), ("a", 1000, 300, 2)], 750),
    ("0::/a/b\n", [("a/b", 500, 100, 2), ("a", 1000, 300, 2)], 450),
    ("0::/a\n", [("a", 100, 300, 2)], 0),
    ("0::/a\n", [("", 1000, 300, 2)], 750),  # as a container sees its own
    ("5:cpu,memory:/a\n1:cpu:/a\n", [("a", 2000, 1000, 1)], 1050),
    ("nonsense\n", [], 4_096_000),
])  # fmt: skip
def test_memory_is_the_least_of_what_anybody_leaves(lines, groups, expected, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(lines)
    for each in groups:
        group(tmp_path, *each)
    assert memory.available(tmp_path) == expected


def test_this_machine_has_memory():
    assert 10**8 < memory.available() < 10**14


def test_imagenet_is_refused_with_the_figure(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 24 * 10**9)
    with pytest.raises(UserError, match=r"imagenet takes 200.4 GB .* but 24.0 GB is available"):
        memory.check_fits(1_331_167 * 224 * 224 * 3, "imagenet")
    memory.check_fits(60_000 * 32 * 32 * 3, "cifar100")


# Remote places

REMOTE = ("gs://bucket/x", "s3://bucket/x", "file:///tmp/x", "hdfs://a:1/x", "https://a.b/x")


@pytest.mark.parametrize("place", REMOTE)
@pytest.mark.parametrize("argument", [
    "--workdir={}", "--out={}", "--src={}", "--teachers={}", "--study={}", "--csv={}",
    "--config={}", "--config.dataset.data_dir={}", "--config.teacher.weights={}", "-workdir={}",
    "label={}", "{}", "--config={}.py", "--config={}.py:x",
])  # fmt: skip
def test_a_remote_place_is_refused_wherever_a_command_takes_one(place, argument, capsys):
    def main(argv):
        raise AssertionError("started")

    with pytest.raises(SystemExit) as error:
        run_command(main, ["command", argument.format(place)], takes_words=True)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert repr(place)[:-1] in said
    assert "expected a path on this machine" in said


def test_a_flag_and_its_place_may_be_two_arguments():
    assert paths.why_not_in(["--workdir", "gs://x"]).startswith("--workdir is 'gs://x', expected")
    for good in (["--workdir=/a/b"], ["--workdir", "runs/x:y"], ["--coordinator=grpc://a:1"],
                 ["C:/x"], ["--config=configs/teacher.py:resnet20"], ["--title", "s3://x"],
                 ["--config.student.freeze=a|b://"], ["--config=my.py:/data/images"],
                 ["--config", "a/my.py:/data/images"]):  # fmt: skip
        assert paths.why_not_in(good) is None


@pytest.mark.parametrize("field", [
    "dataset.data_dir", "teacher.weights", "teacher.ensemble", "student.weights", "workdir",
])  # fmt: skip
def test_a_remote_place_is_refused_wherever_a_program_gives_one(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, workdir = digits_config(1), "w"
    if field == "workdir":
        workdir = "gs://bucket/x"
    elif field == "teacher.ensemble":
        config.teacher.weights, config.teacher.ensemble = "here", ("gs://bucket/x",)
    else:
        config.update_from_flattened_dict({field: "gs://bucket/x"})
    with pytest.raises(UserError, match=r"'gs://bucket/x', expected a path on this machine"):
        train(config, workdir)
    assert not (tmp_path / "gs:").exists()
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("place", "says"), [
    ("x" * 300, "'x{200}', which cannot be looked at .File name too long"),
    ("a\0b", "cannot be looked at .embedded null byte"),
    ("~nobody-is-called-so/x", "that home directory is not known"),
    ("/shut/x", "cannot be looked at .Permission denied"),
])  # fmt: skip
def test_a_place_that_cannot_be_looked_at_is_one_sentence(place, says, tmp_path, monkeypatch):
    def stat(path, *args, **kwargs):
        if str(path).startswith("/shut"):  # the tests may run as root, for whom nothing is
            raise PermissionError(errno.EACCES, "Permission denied")
        return os_stat(path, *args, **kwargs)

    os_stat = os.stat
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^--out is .*{says}"):
        reachable(place, "--out")
    with pytest.raises(UserError, match=f"config.teacher.weights is .*{says}"):
        load.read(place, "", "cifar100")
    with pytest.raises(UserError, match=f"the workdir is .*{says}"):
        train(digits_config(1), place)
    assert reachable("absent/x", "--out") == Path("absent/x")


@pytest.mark.parametrize("variable", ["TFDS_DATA_DIR", "KD_JAX_CACHE_DIR"])
def test_a_remote_place_is_refused_in_the_environment(variable, root, monkeypatch):
    monkeypatch.setenv(variable, "gs://bucket/x")
    config = options() if variable[0] == "T" else options(name="folder", data_dir=str(root))
    with pytest.raises(UserError, match=rf"{variable} is 'gs://bucket/x', expected a path on this"):
        sources.read(config)
