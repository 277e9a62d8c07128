"""Recordings: whole or absent, exact, and refused where they are of something else."""

import dataclasses
import re

import numpy as np
import pytest

from kd_jax.config import default_config
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import recorder, recording
from kd_jax.teachers.answers import Form
from kd_jax.weights import saved_network

BATCH, TEACHERS, CLASSES, STEPS = 8, 2, 5, 10
CARD = saved_network.ModelCard(
    "resnet8", CLASSES, (32, 32, 3), (0.5,) * 3, (0.25,) * 3, "digits", None, "a file", "abc",
    arrays_sha256="def",
)  # fmt: skip


@pytest.fixture
def header(monkeypatch):
    monkeypatch.setattr(recording, "_SHARD_BYTES", 4 * BATCH * TEACHERS * CLASSES * 4)
    config = default_config()
    return recording.Header(
        fields={path: recording.config_lib.get_field(config, path)
                for path in recording.VIEW_FIELDS},
        trajectory=2, data_fingerprint="0123456789", cards=(CARD, CARD), identity="abcdef012345",
        shape=(BATCH, TEACHERS, CLASSES), dtype="float32", total_steps=STEPS,
    )  # fmt: skip


def answers(step):
    rng = np.random.default_rng(step)
    return rng.normal(0, 5, (BATCH, TEACHERS, CLASSES)).astype(np.float32)


def record(directory, header, steps=range(STEPS)):
    writer = recorder.Recorder(directory, header, 1.0)
    for step in steps:
        writer.add(step, answers(step))
    return writer


def test_what_was_recorded_comes_back(header, tmp_path):
    record(tmp_path / "r", header).add_clean("test", answers(99))
    played = recording.Recording(tmp_path / "r")
    assert played.recorded_steps() == STEPS
    for step in (9, 0, 4, 3):
        np.testing.assert_array_equal(played.logits(step), answers(step))
    np.testing.assert_array_equal(played.clean_logits("test"), answers(99))
    assert played.header == header
    with pytest.raises(UserError, match="no answers to the val split"):
        played.clean_logits("val")
    shards = sorted(path.name[:12] for path in (tmp_path / "r").glob("shard-*"))
    assert shards == ["shard-000000", "shard-000001", "shard-000002"]  # 4, 4 and 2 steps


def test_half_precision_is_what_the_student_learns_from(header, tmp_path):
    header = dataclasses.replace(header, dtype="float16")
    writer = recorder.Recorder(tmp_path / "r", header, 1.0)
    taught = [writer.add(step, answers(step)) for step in range(STEPS)]
    played = recording.Recording(tmp_path / "r")
    for step in range(STEPS):
        np.testing.assert_array_equal(played.logits(step), taught[step])
        np.testing.assert_allclose(taught[step], answers(step), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="do not fit into float16"):
        writer.add(0, answers(0) * 1e6)


def test_a_killed_recording_goes_on_where_it_was(header, tmp_path):
    record(tmp_path / "r", header, range(6))  # one whole shard, and two steps that are lost
    assert recording.Recording(tmp_path / "r").recorded_steps() == 4
    writer = recorder.Recorder(tmp_path / "r", header, 1.0)
    assert list(writer.missing_before(6)) == [4, 5]
    assert list(writer.missing_before(4)) == []
    for step in (4, 5, 6):
        writer.add(step, answers(step))
    assert list(writer.missing_before(7)) == []
    for step in (7, 8, 9):
        writer.add(step, answers(step))
    played = recording.Recording(tmp_path / "r")
    assert played.recorded_steps() == STEPS
    np.testing.assert_array_equal(played.logits(5), answers(5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fields": {**dict.fromkeys(recording.VIEW_FIELDS, 0)}}, "config.seed"),
        ({"data_fingerprint": "fedcba9876"}, "the data's fingerprint is fedcba98"),
        ({"identity": "zzz"}, "the teacher is resnet8+resnet8 zzz"),
        ({"trajectory": 3}, "the trajectory is 3 and 2 there"),
        ({"total_steps": 20}, "10 steps in float32, and this run 20"),
        ({"dtype": "float16"}, "in float32, and this run 10 in float16"),
    ],
)
def test_another_recording_is_not_written_over(header, tmp_path, changes, says):
    if "fields" in changes:
        changes = {"fields": {**header.fields, "seed": 7}}
    record(tmp_path / "r", header)
    with pytest.raises(UserError, match=re.escape(says)):
        recorder.Recorder(tmp_path / "r", dataclasses.replace(header, **changes), 1.0)


def test_what_cannot_be_recorded_or_replayed_is_said(header, tmp_path):
    with pytest.raises(UserError, match="no recording in"):
        recording.Recording(tmp_path / "none")
    with pytest.raises(UserError, match="record_limit_gb is 1e-06"):
        recorder.Recorder(tmp_path / "r", header, 1e-6)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        recorder.Recorder(tmp_path / "full", header, 1.0)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_damage_is_found(header, tmp_path):
    record(tmp_path / "r", header)
    (shard,) = (tmp_path / "r").glob("shard-000001-*")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    played = recording.Recording(tmp_path / "r")
    np.testing.assert_array_equal(played.logits(0), answers(0))
    with pytest.raises(UserError, match="is damaged, its content is not what was recorded"):
        played.logits(4)
    shard.unlink()
    assert recording.Recording(tmp_path / "r").recorded_steps() == 4
    with pytest.raises(UserError, match="has no shard 1"):
        recording.Recording(tmp_path / "r").logits(4)
    (tmp_path / "r" / recording.HEADER_FILE).write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        recording.Recording(tmp_path / "r")


# Of many classes the top k, and the mass of the rest.
def softened(logits, temperature):
    scaled = np.asarray(logits, np.float64) / temperature
    return np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_top_and_the_mass_of_the_rest_come_back(precision, temperature):
    logits = np.random.default_rng(0).normal(0, 4, (6, 2, 50)).astype(np.float32)
    form = Form(precision, 50, 8)
    packed = form.pack(logits, temperature)
    assert packed.shape == (6, 2)
    assert packed.dtype.itemsize == 8 * np.dtype(precision).itemsize + 8 * 2 + 4
    back = form.unpack(packed)
    assert (back.dtype, back.shape) == (np.float32, logits.shape)
    threshold = np.sort(logits, axis=-1)[..., -8][..., None]
    top = logits >= threshold
    expected = logits.astype(precision).astype(np.float32)
    np.testing.assert_array_equal(back[top], expected[top])
    ours, theirs = softened(back, temperature), softened(logits, temperature)
    tolerance = 1e-6 if precision == "float32" else 3e-3
    np.testing.assert_allclose(ours[top], theirs[top], rtol=tolerance)
    for one, two, is_top in zip(ours, theirs, top, strict=True):
        np.testing.assert_allclose(
            np.where(is_top, 0, one).sum(-1), np.where(is_top, 0, two).sum(-1), rtol=tolerance
        )
    assert (np.ptp(np.where(top, np.nan, back)[0, 0][~top[0, 0]])) == 0  # in equal shares
    np.testing.assert_array_equal(back.argmax(-1), logits.argmax(-1))


def test_at_another_temperature_the_mass_of_the_rest_would_be_wrong():
    """Why it is refused: the mass of unequal logits does not scale as that of equal ones."""
    logits = np.random.default_rng(0).normal(0, 4, (100, 50)).astype(np.float32)
    back = Form("float32", 50, 8).unpack(Form("float32", 50, 8).pack(logits, 2.0))
    others = logits < np.sort(logits, axis=-1)[:, -8][:, None]
    for temperature, ratio in ((1.0, -1), (5.0, 1)):
        ours, theirs = ((softened(x, temperature) * others).sum(-1) for x in (back, logits))
        assert (np.sign(ours - theirs) == ratio).all()


def test_a_top_recording_on_disk(header, tmp_path):
    header = dataclasses.replace(header, top=2, temperature=5.0)
    writer = recorder.Recorder(tmp_path / "r", header, 1.0)
    taught = [writer.add(step, answers(step)) for step in range(STEPS)]
    played = recording.Recording(tmp_path / "r")
    assert played.header == header
    for step in range(STEPS):
        np.testing.assert_array_equal(played.logits(step), taught[step])
    assert recording.size_in_bytes(header) == STEPS * BATCH * TEACHERS * (2 * 4 + 2 * 2 + 4)
    other = dataclasses.replace(header, temperature=2.0, top=0)
    assert "config.distill.temperature is 2 and 5 there" in header.differences(other)[0]
    with pytest.raises(UserError, match="in the top 2 in float32, and this run 10 in float32"):
        recorder.Recorder(tmp_path / "r", dataclasses.replace(header, top=0), 1.0)
    half = dataclasses.replace(header, dtype="float16")
    with pytest.raises(UserError, match="do not fit into float16"):
        recorder.Recorder(tmp_path / "half", half, 1.0).add(0, answers(0) * 1e6)
