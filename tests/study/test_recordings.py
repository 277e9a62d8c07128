"""Teachers' answers that a study records once: who records, who replays, who waits."""

import json

import numpy as np
import pytest

from kd_jax.runtime.atomic_files import read_json_lines
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError, StopRequest
from kd_jax.study import recordings, spec, worker
from kd_jax.study.leases import Leases
from kd_jax.study.recordings import BusyError, Recordings
from kd_jax.teachers import recorder, recording
from kd_jax.training import provenance, workdir
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config, tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    place = tmp_path_factory.mktemp("teachers") / "tiny"
    variables = tiny().init(9, (32, 32, 3))
    variables["params"]["fc"]["kernel"] *= 100.0  # or an untrained teacher knows nothing
    digest = saved_network.digest_of(variables)
    card = saved_network.ModelCard(
        "tiny", 10, (32, 32, 3), (0.5,) * 3, (0.25,) * 3, "digits", 50.0, "a test", digest,
        arrays_sha256=digest,
    )  # fmt: skip
    saved_network.save(place, card, variables)
    return place.parent


def run_of(name, **fields):
    config = digits_config(1)
    config.teacher.tolerance_points = 100.0  # of this teacher nothing is expected
    config.distill.label_weight = 0.0
    config.teacher.arch = "tiny"
    config.total_steps, config.checkpoint_every_steps = 8, 3
    config.update_from_flattened_dict(fields)
    return spec.Run(name, name, config.lock())


# No two of them can train as one cohort.
LONG, SHORT, PARTS = (
    run_of("long", **{"distill.temperature": 2.0}),
    run_of("short", **{"total_steps": 5, "optimizer.name": "sgd"}),
    run_of("parts", **{"accumulate": 2}),
)


def work(root, teacher, runs, stop=None, record=True):
    with Leases(root, 600, pytest.fail) as leases:
        study = spec.Study("", tuple(runs))
        one = worker.create(
            study, root, teacher, 8, leases, stop or StopRequest(), record=record
        )  # fmt: skip
        one.work()
        failures = [one.failure(run) for run in runs]
    assert failures == [None] * len(runs)


def trained(place):
    losses = [each["loss"] for each in read_json_lines(place / "metrics.jsonl") if "loss" in each]
    return losses, (place / "model.safetensors").read_bytes()


def options(root, run):
    return workdir.load_config(root / "runs" / run.name).teacher


@pytest.fixture(scope="module")
def studied(teacher, tmp_path_factory):
    root = tmp_path_factory.mktemp("study") / "root"
    work(root, teacher, (SHORT, LONG))
    return root


def test_one_row_records_and_the_other_replays_what_it_would_have_been_told(
    studied, teacher, tmp_path
):
    (answers,) = (studied / "answers").iterdir()
    assert options(studied, LONG).record == str(answers)  # the longest comes first
    assert (options(studied, SHORT).record, options(studied, SHORT).replay) == ("", str(answers))
    config = SHORT.config.copy_and_resolve_references()
    config.teacher.weights = str(teacher / "tiny")
    train(config, tmp_path / "live")
    assert trained(studied / "runs" / "short") == trained(tmp_path / "live")


@pytest.mark.proof
def test_a_stopped_recording_goes_on_and_a_row_may_be_added(studied, teacher, tmp_path):
    root = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        work(root, teacher, (LONG,), StopAfter(5))
    assert not list((root / "answers").glob("*/shard*"))
    work(root, teacher, (LONG,), record=False)  # and it goes on as it began
    work(root, teacher, (LONG, SHORT, PARTS))
    for run in (LONG, SHORT):
        assert trained(root / "runs" / run.name) == trained(studied / "runs" / run.name)
    assert options(root, PARTS).replay


def write_recording(place, steps=4, of=4):
    header = recording.Header({}, 1, "a", (), "b", (2, 1, 3), "float32", of)
    writer = recorder.Recorder(place, header, 1.0)
    for step in range(steps):
        writer.add(step, np.zeros(header.shape, np.float32))
    for split in ("val", "test"):
        writer.add_clean(split, np.zeros((1, 5, 3), np.float32))


def begin(root, run, **fields):
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    (root / "runs" / run.name).mkdir(parents=True)
    workdir.create(root / "runs" / run.name, config)


def test_runs_of_the_same_views_and_teacher_have_one_recording(tmp_path):
    ask = Recordings(tmp_path, None, True)
    place = ask.place(LONG)
    same = {
        "temperature": {"distill.temperature": 9.0},
        "optimizer": {"optimizer.name": "lion"},
        "patience": {"patience": 3},
        "parts": {"accumulate": 2},
    }
    others = {
        "seed": {"seed": 1},
        "batch": {"batch_size": 64},
        "mixup": {"mixup.kind": "none"},
        "teacher": {"teacher.arch": "resnet8"},
        "normalisation": {"teacher.normalisation": "half"},
        "precision": {"teacher.record_dtype": "float16"},
        "data": {"dataset.split_seed": 1},
        "length": {"total_steps": 9},
    }
    assert {ask.place(run_of(name, **fields)) for name, fields in same.items()} == {place}
    places = {ask.place(run_of(name, **fields)) for name, fields in others.items()}
    assert len({place, *places}) == 1 + len(others)
    for fields in (
        {"distill.label_weight": 1.0},
        {"distill.view": "fixed"},
        {"teacher.replay": "mine"},
        {"teacher.arch": ""},
    ):
        assert ask.place(run_of("none", **fields)) is None
    assert Recordings(tmp_path, None, False).place(LONG) is None


def test_long_runs_have_names_of_their_own(tmp_path):
    ask = Recordings(tmp_path, None, True)
    lengths = (1_000_000, 1_000_001, 12)
    places = [ask.place(run_of("run", total_steps=length)) for length in lengths]
    assert [place.name.rpartition("-")[2] for place in places] == [
        "steps1000000", "steps1000001", "steps12"
    ]  # fmt: skip


def test_only_a_run_that_records_is_told_how(tmp_path):
    """The others, which do not read it, would be refused."""
    how = {"teacher.record_dtype": "float16", "teacher.record_limit_gb": 3.0}
    run = run_of("run", **how)
    assert recordings.form_in_use(run) == {
        "teacher.record_dtype": "float32", "teacher.record_limit_gb": 20.0, "teacher.record_top": 0
    }  # fmt: skip
    with Leases(tmp_path, 600, pytest.fail) as leases:
        ask = Recordings(tmp_path, leases, True)
        with ask.opened(tmp_path / "new", {"run": run}) as given:
            assert given == {
                "teacher.record": str(tmp_path / "new"), "teacher.record_top": 0, **how
            }  # fmt: skip
    own = run_of("own", **how, **{"teacher.record": "mine"})
    assert recordings.form_in_use(own)["teacher.record_dtype"] == "float16"


def test_a_whole_recording_serves_shorter_runs(tmp_path):
    ask = Recordings(tmp_path, None, True)
    place = ask.place(LONG)
    write_recording(place, 3)
    assert ask.place(SHORT) != place
    write_recording(place)
    assert ask.place(SHORT) == ask.place(LONG) == place
    assert ask.place(run_of("longer", total_steps=11)) != place
    epochs = ask.place(run_of("epochs", total_steps=None, total_epochs=1.0))
    assert epochs != place  # nobody knows here which is longer


def test_one_process_records_and_another_asks_itself_or_waits(tmp_path):
    with Leases(tmp_path, 600, pytest.fail) as ours, Leases(tmp_path, 600, pytest.fail) as theirs:
        one, two = Recordings(tmp_path, ours, True), Recordings(tmp_path, theirs, True)
        place = one.place(LONG)
        begin(tmp_path, PARTS, **{"teacher.record": f"/before/it/moved/{place.name}"})
        begin(tmp_path, SHORT)
        assert two.place(PARTS) == place
        assert two.place(SHORT) is None  # it began without
        assert not two.must_wait(PARTS)
        with one.opened(place, {"long": LONG}) as fields:
            assert fields["teacher.record"] == str(place)
            assert two.must_wait(PARTS)
            assert not two.must_wait(LONG)
            with two.opened(place, {"long": LONG}) as fields:
                assert fields == {}
            with pytest.raises(BusyError), two.opened(place, {"parts": PARTS}):
                pass
        with two.opened(place, {"parts": PARTS}) as fields:  # ours was not finished
            assert fields["teacher.record"] == str(place)
            write_recording(place)
        with one.opened(place, {"long": LONG}) as fields:
            assert fields == {"teacher.replay": str(place)}
        assert not two.must_wait(PARTS)
    (lease, _) = (tmp_path / "claims" / f".answers-{place.name}").iterdir()
    ended = {json.loads(path.read_text())["ended"] for path in lease.parent.iterdir()}
    assert ended == {"unfinished", "whole"}


def test_a_run_keeps_its_kind_of_answers(tmp_path):
    for began, now, says in (
        (None, "float16", "were asked in training, and now they are recorded in float16"),
        ("float16", None, "were recorded in float16, and now they are asked in training"),
        ("float16", "float32", "recorded in float16, and now they are recorded in float32"),
    ):
        place = tmp_path / f"{began}-{now}"
        place.mkdir()
        provenance.check_answers(place, now)
        provenance.add_start(place, 0, "data", None, 1, answers=began)
        provenance.check_answers(place, began)
        with pytest.raises(UserError, match=says):
            provenance.check_answers(place, now)
