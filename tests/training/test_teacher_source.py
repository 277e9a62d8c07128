"""Teachers that answer between the steps: on the host, recorded, replayed."""

import json

import numpy as np
import pytest

import kd_jax as kd
from kd_jax import config as config_lib
from kd_jax.api.teachers import TeacherSpec
from kd_jax.config import checks
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import recording
from kd_jax.teachers.teacher import ForeignNetwork

KERNEL = np.random.default_rng(0).normal(0, 0.05, (32 * 32 * 3, 10)).astype(np.float32)
OPTIONS = {
    "student": "resnet8", "batch_size": 32, "steps": 6, "log_every_steps": 1,
    "checkpoint_every_steps": 2, "num_devices": 2, "progress_line": False,
}  # fmt: skip


def live():
    return kd.teacher(lambda v, x: x.reshape(len(x), -1) @ v, KERNEL, name="linear")


def on_host(call=lambda images: images.reshape(len(images), -1) @ KERNEL):
    return TeacherSpec("python:host", ForeignNetwork("python:host", "a test", "1", call=call))


def losses(run):
    return [each["loss"] for each in run.history if each["kind"] == "train"]


@pytest.fixture(scope="module")
def fused(digits, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("live")
    return kd.distill(live(), data=digits, workdir=workdir / "run", **OPTIONS)


@pytest.fixture(scope="module")
def recorded(digits, tmp_path_factory):
    place = tmp_path_factory.mktemp("recorded")
    run = kd.distill(
        live(), data=digits, workdir=place / "run", record=str(place / "answers"), **OPTIONS
    )
    return run, place / "answers"


def test_a_teacher_on_the_host_teaches_as_one_in_the_step(digits, fused, tmp_path, caplog):
    logger.propagate = True
    with caplog.at_level("INFO", "kd_jax"):
        run = kd.distill(on_host(), data=digits, workdir=tmp_path / "run", **OPTIONS)
    np.testing.assert_allclose(losses(run), losses(fused), rtol=1e-5)
    for name in ("test_top1", "agreement", "kl_to_teacher", "teacher_top1"):
        assert run.metrics[name] == pytest.approx(fused.metrics[name], rel=1e-4, abs=1e-3)
    assert "answers between the steps" in caplog.text


def test_a_fixed_view_of_a_teacher_on_the_host(digits, tmp_path):
    fixed = {**OPTIONS, "distill__view": "fixed", "mixup__kind": "none", "steps_per_call": 2}
    runs = [
        kd.distill(teacher, data=digits, workdir=tmp_path / name, **fixed)
        for name, teacher in (("live", live()), ("host", on_host()))
    ]
    np.testing.assert_allclose(*map(losses, runs), rtol=1e-5)


def test_a_replay_gives_the_bits_of_the_run_that_recorded(digits, fused, recorded, tmp_path):
    run, answers = recorded
    np.testing.assert_allclose(losses(run), losses(fused), rtol=1e-5)
    again = kd.distill(None, data=digits, workdir=tmp_path / "run", replay=str(answers), **OPTIONS)
    assert losses(again) == losses(run)
    keys = ("test_nll", "val_top1", "agreement", "kl_to_teacher", "teacher", "teacher_top1")
    assert [again.metrics[key] for key in keys] == [run.metrics[key] for key in keys]
    assert (again.workdir / "model.safetensors").read_bytes() == (
        run.workdir / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "changes", [{"temperature": 1.0}, {"distill__loss": "reverse_kl"}, {"student": "resnet20"}]
)
def test_another_student_or_loss_learns_from_the_same_recording(
    digits, recorded, tmp_path, changes
):
    run = kd.distill(
        None, data=digits, workdir=tmp_path / "run", replay=str(recorded[1]),
        **{**OPTIONS, **changes},
    )  # fmt: skip
    assert run.finished
    assert losses(run) != losses(recorded[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "config.seed is 1 and 0 there"),
        ({"batch_size": 64}, "config.batch_size is 64 and 32 there"),
        ({"mixup__kind": "none"}, "config.mixup.kind is 'none' and 'batch' there"),
        ({"augment__flip": False}, "config.augment.flip is False and True there"),
        ({"steps": 7}, "has 6 steps, and this run needs 7"),
        ({"distill__view": "fixed", "mixup__kind": "none"}, "expected neither config.teacher"),
        ({"teacher__record": "there"}, "expected one of them"),
    ],
)
def test_a_recording_of_other_views_is_refused_by_the_field(
    digits, recorded, tmp_path, changes, says
):
    with pytest.raises(UserError, match=says):
        kd.distill(
            None, data=digits, workdir=tmp_path / "run", replay=str(recorded[1]),
            **{**OPTIONS, **changes},
        )  # fmt: skip


def test_other_data_or_another_teacher_is_refused(digits, recorded, tmp_path):
    images, labels = digits
    where = dict(workdir=tmp_path / "run", replay=str(recorded[1]), **OPTIONS)
    with pytest.raises(UserError, match="the data's fingerprint is"):
        kd.distill(None, data=(images[::-1], labels), **where)
    other = kd.teacher(lambda v, x: x.reshape(len(x), -1) @ v, 2 * KERNEL, name="other")
    with pytest.raises(UserError, match="the teacher is python:other"):
        kd.distill(other, data=digits, **where)


def test_a_stopped_recording_goes_on_and_is_the_same(digits, recorded, tmp_path):
    class Stop(kd.Callback):
        def on_step(self, step, metrics):
            if step == 3:
                raise kd.StopTraining

    where = dict(data=digits, workdir=tmp_path / "run", record=str(tmp_path / "answers"), **OPTIONS)
    assert not kd.distill(live(), callbacks=[Stop()], **where).finished
    assert not list((tmp_path / "answers").glob("shard-*"))
    run = kd.distill(live(), **where)
    assert losses(run) == losses(recorded[0])
    names = [sorted(path.name for path in place.iterdir())
             for place in (tmp_path / "answers", recorded[1])]  # fmt: skip
    assert names[0] == names[1]  # digests are part of them
    again = kd.distill(live(), **where)  # finished: only measured again
    assert again.metrics["test_nll"] == run.metrics["test_nll"]


def test_a_failing_teacher_is_one_sentence_and_the_run_goes_on_later(digits, tmp_path, fused):
    calls = []

    def failing(images):
        calls.append(len(images))
        if calls.count(32) == 4:  # in training, whose batches are whole
            raise RuntimeError("out of memory")
        return images.reshape(len(images), -1) @ KERNEL

    where = dict(data=digits, workdir=tmp_path / "run", **OPTIONS)
    with pytest.raises(UserError, match="fails with RuntimeError: out of memory"):
        kd.distill(on_host(failing), **where)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == 32
    run = kd.distill(on_host(), **where)
    np.testing.assert_allclose(losses(run), losses(fused), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda images: np.full((len(images), 10), np.nan, np.float32), "not finite for 2 of 2"),
        (lambda images: images, r"expected logits, floats of shape \(2, classes\)"),
        (lambda images: np.zeros((len(images), 10), int), "int64"),
        (lambda images: np.zeros((len(images), 7), np.float32), "knows 7 classes"),
        (lambda images: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_answers_that_cannot_be_are_refused_before_anything_is_written(
    digits, tmp_path, call, says
):
    with pytest.raises(UserError, match=says):
        kd.distill(on_host(call), data=digits, workdir=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_shards_that_are_gone_are_recorded_again(digits, recorded, tmp_path, monkeypatch):
    """One step a shard, so that a resumed run has shards behind it."""
    monkeypatch.setattr(recording, "_SHARD_BYTES", 1)

    class Stop(kd.Callback):
        def on_step(self, step, metrics):
            if step == 4:
                raise kd.StopTraining

    where = {
        "data": digits, "workdir": tmp_path / "run", "record": str(tmp_path / "answers"), **OPTIONS
    }  # fmt: skip
    assert not kd.distill(live(), callbacks=[Stop()], **where).finished
    (shard,) = (tmp_path / "answers").glob("shard-000001-*")
    shard.unlink()
    assert losses(kd.distill(live(), **where)) == losses(recorded[0])
    assert shard.exists()
    assert recording.Recording(tmp_path / "answers").recorded_steps() == 6


def test_what_cannot_be_recorded_is_said_before_anything_is_written(digits, recorded, tmp_path):
    where = {"data": digits, "workdir": tmp_path / "run", **OPTIONS}
    for options, says in (
        ({"record": str(tmp_path / "a"), "record_limit_gb": 1e-9}, "record_limit_gb is 1e-09"),
        ({"record": str(recorded[1]), "seed": 3}, "holds another recording"),
    ):
        with pytest.raises(UserError, match=says):
            kd.distill(live(), **where, **options)
        assert not (tmp_path / "run").exists()


def test_shares_of_a_replay_are_one_for_each_recorded_teacher(digits, recorded, tmp_path):
    with pytest.raises(UserError, match="of the 1 teachers that were recorded"):
        kd.distill(
            None, data=digits, workdir=tmp_path / "run", replay=str(recorded[1]),
            shares=(1.0, 2.0), **OPTIONS,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"record_top": 10}, "record_top is 10, expected fewer than the 10 classes"),
        ({"record_top": 3, "distill__loss": "squared_error"}, "loss=squared_error reads every"),
        ({"record_top": 3, "distill__standardize_logits": True}, "standardize_logits reads every"),
    ],
)
def test_a_part_of_the_logits_is_refused_where_all_are_read(digits, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        kd.distill(
            live(), data=digits, workdir=tmp_path / "run", record=str(tmp_path / "a"),
            **{**OPTIONS, **changes},
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "a").exists()


def test_a_recording_of_the_top_is_replayed_at_its_temperature(digits, recorded, tmp_path):
    answers = str(tmp_path / "answers")
    run = kd.distill(
        live(), data=digits, workdir=tmp_path / "run", record=answers, record_top=8, **OPTIONS
    )
    np.testing.assert_allclose(losses(run), losses(recorded[0]), rtol=0.05)
    assert losses(run) != losses(recorded[0])
    again = kd.distill(None, data=digits, workdir=tmp_path / "again", replay=answers, **OPTIONS)
    assert losses(again) == losses(run)
    looked_at = run.config.copy_and_resolve_references().unlock()
    looked_at.teacher.record = ""  # as `saved_student` does: nothing is recorded then
    looked_at.update_from_flattened_dict(config_lib.unread(looked_at))
    checks.check(looked_at)
    with pytest.raises(UserError, match="temperature is 2 and 5 there, where the mass below the"):
        kd.distill(
            None, data=digits, workdir=tmp_path / "other", replay=answers,
            temperature=2.0, **OPTIONS,
        )  # fmt: skip
