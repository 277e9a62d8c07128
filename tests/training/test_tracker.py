"""What the loop does for one run: nothing that is not finite is logged as good, or saved."""

import contextlib
import json
import logging
import math
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from kd_jax.runtime import signals
from kd_jax.runtime.errors import DivergedError
from kd_jax.training import metric_logger
from kd_jax.training import tracker as tracker_lib
from kd_jax.training.cadence import Cadence
from kd_jax.training.callbacks import Callback, StopTraining
from kd_jax.training.checkpoints import DamagedError
from kd_jax.training.listeners import Listeners
from kd_jax.training.time_left import TimeLeft
from kd_jax.training.tracker import Member, MemberDivergedError, Tracker, explain_divergence


class State(NamedTuple):
    variables: Any


STATE = State(np.arange(3.0))
MEASURES = {"top1": 40.0, "nll": 2.5, "ece": 1.0}


class Checkpoints:
    """Stands for those of a run; keeps what is saved."""

    def __init__(self):
        self.saved, self.newest, self.damage = [], None, ""

    def save(self, step, state, metrics):
        self.saved.append((step, state, metrics))

    def wait(self):
        pass

    def latest_step(self):
        return self.newest

    def restore(self, state, step):
        if self.damage:
            raise DamagedError(self.damage)
        return state


class Evaluator:
    """Stands for one of a student that reaches 40 %, or whose answers are not finite."""

    def __init__(self):
        self.measured, self.error, self.measures = [], "", MEASURES
        self.prepared = []

    def prepare(self, variables, split):
        self.prepared.append(split)

    def measure_student(self, variables, split):
        self.measured.append(split)
        if self.error:
            raise DivergedError(self.error)
        return dict(self.measures)


@pytest.fixture
def member(tmp_path):
    run: Any = types.SimpleNamespace(
        config=types.SimpleNamespace(batch_size=10),
        dataset=types.SimpleNamespace(train=range(40), val=range(3)),
        devices=jax.devices()[:1],
        learning_rate=lambda step: 0.25,
        quantizes=False,
        is_quantized=lambda step: step >= 15,
    )
    return Member(run, Evaluator(), Checkpoints(), tmp_path)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


class Recorder(Callback):
    """Keeps what it hears; stops at the event that it is told."""

    def __init__(self):
        self.events, self.stop_at = [], None

    def _hear(self, event, *arguments):
        self.events.append((event, *arguments))
        if event == self.stop_at:
            raise StopTraining

    def on_step(self, step, metrics):
        self._hear("step", step, metrics)

    def on_evaluate(self, step, measures):
        self._hear("evaluate", step, measures)

    def on_checkpoint(self, step, directory):
        self._hear("checkpoint", step, directory)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def stop():
    return signals.StopRequest()


@pytest.fixture
def make(member, recorder, stop, stack):
    """A function that opens a tracker of the run, which closing the stack closes."""

    def make(start=0, name="", work=None):
        cadence = Cadence(20, 5, 5, frozenset({10, 20}), 1)
        work = work or TimeLeft(cadence)
        tracker = Tracker(member, cadence, start, name, Listeners([recorder], stop), work)
        return stack.enter_context(contextlib.closing(tracker))

    return make


def records(member):
    lines = (member.workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_metrics_are_written_when_they_are_flushed(member, make, caplog):
    caplog.set_level(logging.INFO, "kd_jax")
    tracker = make(name="run-a: ")
    tracker.note(6, {"loss": np.float32(0.5)})
    assert records(member) == []
    tracker.flush()
    tracker.flush()  # nothing was noted since
    told = {"epoch": 1.5, "loss": 0.5, "learning_rate": 0.25}
    assert records(member) == [{"kind": "train", "step": 6, **told}]
    assert "run-a: step 6/20  epoch 1.50  loss 0.5000" in caplog.text


def test_there_is_no_rate_before_anything_was_measured(make):
    tracker = make()
    assert tracker.images_per_second is None
    tracker.start_timing(4)
    tracker.stop_timing(4)  # no step was made
    assert tracker.images_per_second is None
    tracker.start_timing(4)
    tracker.stop_timing(6)
    assert tracker.images_per_second > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("act", ["flush", "stop_timing", "check"])
def test_what_is_not_finite_names_its_run_and_is_not_written(act, value, member, make):
    tracker = make()
    metrics = {"loss": np.float32(1.0), "gradient_norm": np.float32(value)}
    tracker.note(7, metrics)
    calls = {
        "flush": tracker.flush,
        "stop_timing": lambda: tracker.stop_timing(7),
        "check": lambda: tracker.check(7, metrics),
    }
    with pytest.raises(MemberDivergedError, match=rf"^gradient_norm is {value} at step 7$") as info:
        calls[act]()
    assert info.value.member is member
    assert records(member) == []


def test_finite_metrics_pass_the_check_and_are_not_written(member, make):
    make().check(7, {"loss": np.float32(1.0)})
    assert records(member) == []


@pytest.mark.parametrize(("step", "top1"), [(5, None), (10, 40.0), (15, None), (20, 40.0)])
def test_a_checkpoint_is_validated_where_the_cadence_says_so(step, top1, member, make):
    assert make().save(step, STATE) == top1
    metrics = None if top1 is None else {"val_top1": 40.0, "val_nll": 2.5}
    assert member.checkpoints.saved == [(step, STATE, metrics)]
    assert member.evaluator.measured == ([] if top1 is None else ["val"])
    expected = [] if top1 is None else [{"kind": "val", "step": step, **MEASURES}]
    assert records(member) == expected


def test_what_a_first_validation_does_once_is_no_part_of_the_time_left(member, make, monkeypatch):
    now = [0.0]

    def takes(seconds, method):
        def timed(*arguments):
            now[0] += seconds
            return method(*arguments)

        return timed

    evaluator = member.evaluator
    monkeypatch.setattr(evaluator, "prepare", takes(100.0, evaluator.prepare))
    monkeypatch.setattr(evaluator, "measure_student", takes(2.0, evaluator.measure_student))
    work = TimeLeft(Cadence(1000, 5, 5000, frozenset(range(10, 1001, 10)), 1), clock=lambda: now[0])
    make(work=work).save(10, STATE)
    assert evaluator.prepared == ["val"]
    assert work.seconds(10, 0.0) == 99 * 2.0


def test_a_validation_of_few_images_says_of_how_many(member, make, caplog):
    caplog.set_level(logging.INFO, "kd_jax")
    make().save(10, STATE)
    assert "step 10  validation top-1 40.00 % (of 3 images)" in caplog.text


def test_the_best_of_a_run_for_int8_computes_with_its_numbers(member, make):
    member.run.quantizes = True
    tracker = make()
    assert [tracker.save(step, STATE) for step in (10, 20)] == [40.0, 40.0]
    assert [metrics is None for _, _, metrics in member.checkpoints.saved] == [True, False]


def test_the_time_left_is_that_of_the_program_in_use(member, make, monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(metric_logger.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(TimeLeft, "words", lambda self, step, seconds: asked.append(seconds) or "")
    tracker = make()

    def log(step, seconds):
        now[0] += seconds
        tracker.note(step, {"loss": np.float32(0.5)})
        tracker.flush()

    tracker.start_timing(0)
    log(5, 5.0)
    tracker.begin_program()
    log(5, 0.0)  # nothing of it is measured yet
    log(10, 20.0)
    assert asked == [1.0, None, 4.0]
    assert tracker.images_per_second == pytest.approx(10 * 10 / 25)  # of all


def test_without_labels_the_best_is_the_nearest_to_the_teacher(member, make):
    member.evaluator.measures = {"agreement": 70.0, "kl_to_teacher": 0.5}
    assert make().save(10, STATE) == 70.0
    assert member.checkpoints.saved == [(10, STATE, {"val_top1": 70.0, "val_nll": 0.5})]


def test_callbacks_hear_what_is_written_in_its_order(member, make, recorder):
    tracker = make()
    tracker.note(10, {"loss": np.float32(0.5)})
    tracker.flush()
    tracker.save(10, STATE)
    tracker.save(15, STATE)
    assert recorder.events == [
        ("step", 10, {"epoch": 2.5, "loss": 0.5, "learning_rate": 0.25}),
        ("evaluate", 10, MEASURES),
        ("checkpoint", 10, member.workdir / "checkpoints" / "10"),
        ("checkpoint", 15, member.workdir / "checkpoints" / "15"),
    ]


@pytest.mark.parametrize("event", ["step", "evaluate", "checkpoint"])
def test_a_callback_stops_training_and_loses_nothing(event, member, make, recorder, stop):
    recorder.stop_at = event
    tracker = make()
    tracker.note(10, {"loss": np.float32(0.5)})
    tracker.flush()
    assert tracker.save(10, STATE) == 40.0
    assert stop.requested == f"Recorder.on_{event}"
    assert [record["kind"] for record in records(member)] == ["train", "val"]
    assert len(member.checkpoints.saved) == 1


def test_a_student_whose_answers_are_not_finite_is_not_saved(member, make):
    member.evaluator.error = "the student's logits are not finite for 3 of 40 images"
    with pytest.raises(MemberDivergedError, match=r"3 of 40 images at step 10$") as info:
        make().save(10, STATE)
    assert info.value.member is member
    assert member.checkpoints.saved == []
    assert records(member) == []


def test_a_resumed_run_knows_the_validations_before_its_checkpoint(member, make, stack):
    tracker = make()
    for step, top1 in ((10, 30.0), (20, 50.0)):
        member.evaluator.measures = MEASURES | {"top1": top1}
        tracker.save(step, STATE)
    assert tracker.earlier_top1 == []  # of this start there was none before
    stack.close()
    assert make(start=10).earlier_top1 == [30.0]
    assert [record["step"] for record in records(member)] == [10]  # what came later is made again


def test_a_process_that_is_not_the_first_writes_nothing(member, make, monkeypatch):
    monkeypatch.setattr(tracker_lib.processes, "is_first", lambda: False)
    tracker = make()
    tracker.note(5, {"loss": np.float32(0.5)})
    tracker.flush()
    assert tracker.save(10, STATE) == 40.0
    assert tracker.earlier_top1 == []
    assert list(member.workdir.iterdir()) == []


def explanation(member):
    error = explain_divergence(MemberDivergedError("loss is nan at step 9", member), STATE)
    assert error.workdir == member.workdir
    text = str(error)
    assert text.startswith("loss is nan at step 9: ")
    assert text.endswith("with another --workdir")
    return text


def test_the_end_of_a_diverged_run_says_what_is_kept(member):
    assert "no checkpoint had been saved yet" in explanation(member)
    member.checkpoints.newest = 5
    assert (
        "the checkpoint of step 5 is kept, it reaches 40.00 % (of 3 images) on val"
        in explanation(member)
    )
    member.evaluator.error = "the student's logits are not finite"
    assert "at the checkpoint of step 5, which is kept, the student's" in explanation(member)
    member.checkpoints.damage = "its arrays are not those that were saved"
    assert "the checkpoint of step 5 is damaged (its arrays are not" in explanation(member)
