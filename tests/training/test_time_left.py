"""The time left counts what is still to be done, by how long each kind of it took."""

import dataclasses

import pytest

from kd_jax.training.cadence import Cadence
from kd_jax.training.time_left import CHECKPOINT, COMPILATION, VALIDATION, TimeLeft, duration


class Clock:
    """An invented clock."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def cadence(total=1000, validate_every=100, save_every=10_000, steps_per_call=1):
    validations = frozenset(range(validate_every, total + 1, validate_every)) | {total}
    return Cadence(total, 10, save_every, validations, steps_per_call)


def test_validations_that_are_to_come_are_counted():
    clock = Clock()
    left = TimeLeft(cadence(), clock=clock)
    with left.measured(VALIDATION):
        clock.now += 10.0
    assert left.seconds(50, 0.2) == pytest.approx(950 * 0.2 + 10 * 10.0)
    assert left.seconds(950, 0.2) == pytest.approx(50 * 0.2 + 10.0)
    assert left.seconds(1000, 0.2) == 0


def test_a_simulated_run_is_told_right_from_its_first_measure_of_each_kind_on():
    """The estimate at each step against what the invented clock then shows at the end."""
    clock, run = Clock(), cadence(save_every=150, steps_per_call=7)
    left = TimeLeft(run, clock=clock, at_the_end=2.0)
    estimates, compiled = {}, set()
    for call in run.calls(0, 1000):
        if len(call) not in compiled:
            compiled.add(len(call))
            with left.measured(COMPILATION):
                clock.now += 30.0
        else:
            clock.now += 0.5 * len(call)
        step = call.stop
        if run.should_validate(step):
            with left.measured(VALIDATION):
                clock.now += 10.0
        if run.should_save(step):
            with left.measured(CHECKPOINT):
                clock.now += 2.0
        estimates[step] = (clock.now, left.seconds(step, 0.5))
    end = clock.now + 2 * 10.0
    assert len(compiled) == 2
    for step, (now, estimate) in estimates.items():
        if step >= 100:
            assert estimate == pytest.approx(end - now), step


def test_what_is_not_measured_yet_is_named():
    left = TimeLeft(cadence())
    assert left.words(0, None) == "?"
    assert left.words(50, 0.1) == "1m35s and 10 validations"
    assert left.words(950, 0.1) == "5s and 1 validation"
    left.add(VALIDATION, 10.0)
    assert left.words(50, 0.1) == "3m15s"


def test_the_first_of_a_kind_compiles_and_counts_until_there_is_another():
    left = TimeLeft(cadence())
    left.add(VALIDATION, 40.0)
    assert left.seconds(900, 0.0) == 40.0
    left.add(VALIDATION, 10.0)
    assert left.seconds(900, 0.0) == 10.0


def test_each_member_of_a_cohort_validates():
    left = TimeLeft(cadence(), members=3)
    for _ in range(3):
        left.add(VALIDATION, 5.0)
    assert left.seconds(900, 0.0) == 15.0


def test_work_that_fails_is_not_measured():
    left = TimeLeft(cadence())
    with pytest.raises(RuntimeError), left.measured(VALIDATION):
        raise RuntimeError
    assert left.words(999, 1.0) == "1s and 1 validation"


@pytest.mark.parametrize("start", [0, 9, 10, 250, 999, 1000])
def test_the_counts_are_those_of_the_calls(start):
    run = cadence(save_every=70, steps_per_call=3)
    steps = range(start + 1, 1001)
    assert run.validations_in(start, 1000) == sum(run.should_validate(step) for step in steps)
    assert run.saves_in(start, 1000) == sum(run.should_save(step) for step in steps)
    assert run.call_sizes(start, 1000) == {len(call) for call in run.calls(start, 1000)}


def test_a_student_that_is_quantised_compiles_again():
    run = dataclasses.replace(cadence(), quantize_from=900)
    assert [run.programs(*steps) for steps in ((0, 1000), (900, 1000), (0, 900))] == [2, 1, 1]
    left = TimeLeft(run)
    left.add(COMPILATION, 30.0)
    assert left.seconds(1, 0.0) == 30.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42s"), (185, "3m05s"), (3720, "1h02m"), (2 * 86400 + 3 * 3600, "2d03h")],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text
