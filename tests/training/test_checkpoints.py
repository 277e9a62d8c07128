"""Checkpoints: exact, and any damage is noticed."""

import hashlib
import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kd_jax.runtime import signals
from kd_jax.runtime.errors import UserError
from kd_jax.training import provenance, trajectory, workdir
from kd_jax.training.checkpoints import Checkpoints, DamagedError


def state_of(step):
    rng = np.random.default_rng(step)
    return {
        "params": {"kernel": rng.standard_normal((64, 65)).astype(np.float32)},
        "step": np.array(step, np.int32),
        "empty": {},
    }


def assert_same(left, right):
    assert left["step"] == right["step"]
    np.testing.assert_array_equal(left["params"]["kernel"], right["params"]["kernel"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the checkpoints of steps 1 and 2, the first the better one."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {"val_top1": 50.0 - step})
    checkpoints.close()
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files_of(saved, step):
    return sorted(path for path in (saved / str(step)).rglob("*") if path.is_file())


def test_what_was_saved_comes_back(copy):
    checkpoints = Checkpoints(copy, keep=2)
    assert_same(checkpoints.restore_newest(state_of(0)), state_of(2))
    assert checkpoints.best_step() == 1
    assert_same(checkpoints.restore(state_of(0), 1), state_of(1))


def test_a_checkpoint_whose_measures_are_not_finite_is_never_the_best(tmp_path):
    """NaN logits scored 100 % before they were refused; workdirs of then still hold such."""
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    measured = [
        {"val_top1": 40.0, "val_nll": 2.0},
        {"val_top1": 100.0, "val_nll": math.nan},
        {"val_top1": math.nan, "val_nll": 1.0},
        {"val_top1": 39.0, "val_nll": 2.0},
    ]
    for step, metrics in enumerate(measured, 1):
        checkpoints.save(step, state_of(step), metrics)
    checkpoints.wait()
    assert checkpoints.best_step() == 1
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "4"}


@pytest.fixture
def of_version_1(tmp_path):
    """A checkpoint as it was written before there was a version of the trajectory."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state_of(3)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    tree = {"state": state_of(3), "digest": np.frombuffer(digest.digest(), np.uint8)}
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(3, args=ocp.args.StandardSave(tree), metrics={})
    return tmp_path / "checkpoints"


def test_a_checkpoint_of_another_version_is_read_but_not_resumed(of_version_1):
    checkpoints = Checkpoints(of_version_1, keep=2)
    assert checkpoints.version(3) == 1
    assert_same(checkpoints.restore(state_of(0), 3, version=1), state_of(3))
    with pytest.raises(UserError, match=r"version 1 of the traj.*version 2 \(the gradient is clip"):
        checkpoints.restore_newest(state_of(0))
    assert (of_version_1 / "3").is_dir()
    checkpoints.save(4, state_of(4))
    checkpoints.wait()
    assert checkpoints.version(4) == trajectory.VERSION
    assert_same(checkpoints.restore_newest(state_of(0)), state_of(4))


def test_a_checkpoint_of_the_future_is_not_resumed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "VERSION", trajectory.VERSION + 1)
        checkpoints = Checkpoints(tmp_path / "c", keep=2)
        checkpoints.save(1, state_of(1))
        checkpoints.close()
    with pytest.raises(UserError, match="a newer kd_jax began it"):
        Checkpoints(tmp_path / "c", keep=2).restore_newest(state_of(0))


def test_none_at_all(tmp_path):
    assert Checkpoints(tmp_path / "c", keep=1).restore_newest(state_of(0)) is None


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def lose(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, lose])
def test_whichever_file_is_damaged_a_good_state_comes_back(saved, damage, tmp_path):
    """Each file of the newest checkpoint in turn: the very same state, or the one before."""
    files = files_of(saved, 2)
    assert len(files) >= 4
    went_back = 0
    for number, path in enumerate(files):
        copy = shutil.copytree(saved, tmp_path / str(number) / "checkpoints")
        damage(copy / path.relative_to(saved))
        checkpoints = Checkpoints(copy, keep=2)
        state = checkpoints.restore_newest(state_of(0))
        assert_same(state, state_of(int(state["step"])))
        if state["step"] == 1:
            went_back += 1
            assert (tmp_path / str(number) / "damaged" / "2").is_dir()
            assert checkpoints.latest_step() == 1
            checkpoints.save(2, state_of(2))  # and the run goes on
            checkpoints.close()
            assert_same(Checkpoints(copy, keep=2).restore_newest(state_of(0)), state_of(2))
    assert went_back >= 1


def test_the_arrays_themselves_are_checked(copy):
    """The largest file holds the numbers: one flipped byte in it is never trained on."""
    largest = max(files_of(copy, 2), key=lambda path: path.stat().st_size)
    flip(largest)
    with pytest.raises(DamagedError):
        Checkpoints(copy, keep=2).restore(state_of(0), 2)


def test_no_good_checkpoint_is_one_sentence_and_nothing_is_moved(copy):
    for step in (1, 2):
        for path in files_of(copy / str(step) / "default", "."):
            cut(path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(step 2: .*step 1: "):
        Checkpoints(copy, keep=2).restore_newest(state_of(0))
    assert {path.name for path in copy.iterdir()} >= {"1", "2"}


def test_metrics_that_cannot_be_read_anywhere(copy):
    for step in (1, 2):
        cut(copy / str(step) / "metrics" / "metrics")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .*metrics cannot be read"):
        Checkpoints(copy, keep=2)
    assert {path.name for path in copy.iterdir()} >= {"1", "2"}


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2)
    checkpoints.save(1, state_of(1))
    checkpoints.wait()
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 1_000_000)
    large = state_of(2)
    large["params"]["kernel"] = np.random.default_rng(0).standard_normal((1000, 1000))

    def save():
        checkpoints.save(2, large)
        checkpoints.wait()  # it is written in the background

    with pytest.raises(UserError, match=r"cannot be written .* the one before it is kept"):
        save()
    filler.unlink()
    again = Checkpoints(small_disk / "checkpoints", keep=2)
    assert_same(again.restore_newest(state_of(0)), state_of(1))
    again.save(2, state_of(2))
    again.close()
    assert_same(Checkpoints(small_disk / "checkpoints", 2).restore_newest(state_of(0)), state_of(2))


def test_a_workdir_has_one_writer(tmp_path):
    with workdir.Lock(tmp_path) as first:
        first.acquire()  # again: nothing happens
        with pytest.raises(UserError, match=r"is in use by process \d+ on \w+"):
            workdir.Lock(tmp_path).acquire()
    with workdir.Lock(tmp_path):
        pass
    assert (tmp_path / "lock").read_bytes() == b""


def test_other_data_is_refused(tmp_path):
    provenance.check_data(tmp_path, "abc")
    provenance.add_start(tmp_path, 0, "abc", None, 2)
    provenance.add_start(tmp_path, 7, "abc", None, 1)
    starts = json.loads((tmp_path / "provenance.json").read_text())
    assert [start["step"] for start in starts] == [0, 7]
    assert starts[0]["packages"]["jax"]
    with pytest.raises(UserError, match="fingerprint abc, but this data set's is abd"):
        provenance.check_data(tmp_path, "abd")


@pytest.mark.parametrize(("began", "now"), [("abc", "abd"), ("abc", None), (None, "abd")])
def test_another_start_of_the_student_is_refused(began, now, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(provenance.logger, "propagate", True)
    provenance.check_student(tmp_path, now)  # nothing has begun
    provenance.add_start(tmp_path, 0, "data", None, 1, began)
    provenance.check_student(tmp_path, began)
    with pytest.raises(UserError, match=r"began with other weights, or under another normalis"):
        provenance.check_student(tmp_path, now)
    # A record from before the start was in it.
    path = tmp_path / "provenance.json"
    starts = json.loads(path.read_text())
    del starts[0]["student_start"]
    path.write_text(json.dumps(starts))
    provenance.check_student(tmp_path, None)
    assert not caplog.text
    provenance.check_student(tmp_path, "abd")
    assert "no record of the weights that its student began with" in caplog.text


def test_a_stop_is_remembered_while_there_is_work_to_save():
    stop = signals.StopRequest()
    stop.has_unsaved_work(True)
    assert stop.requested is None
    stop.request("SIGTERM")
    assert stop.requested == "SIGTERM"


def test_a_network_that_is_another_now_is_not_looked_at():
    """Its arrays fit, and would be measured as a network that nobody trained."""
    trajectory.check_network("w", "mobilenet_v3_small", 1)
    trajectory.check_network("w", "mobilenet_v3_large_cifar", trajectory.VERSION)
    with pytest.raises(UserError, match="is another network now: look at it with the kd_jax that"):
        trajectory.check_network("w", "mobilenet_v3_large_cifar", 1)
