"""After which steps a run logs, validates and saves, and where its calls end."""

import types
from fractions import Fraction

import pytest

from kd_jax.training.cadence import Cadence


def cadence(
    total_steps=30, log_every=7, save_every=10, validation_steps=(12, 30), steps_per_call=4
):
    return Cadence(total_steps, log_every, save_every, frozenset(validation_steps), steps_per_call)


def cadence_of(total_steps, batch_size=32, examples=100, every="1", teachers=None, **options):
    config = types.SimpleNamespace(
        batch_size=batch_size,
        eval_every_epochs=float(every),
        log_every_steps=5,
        checkpoint_every_steps=9,
        steps_per_call=2,
        distill=types.SimpleNamespace(view="augmented"),
        teacher=types.SimpleNamespace(**{"record": "", "replay": ""} | options),
    )
    dataset = types.SimpleNamespace(train=range(examples))
    run = types.SimpleNamespace(
        config=config,
        dataset=dataset,
        total_steps=total_steps,
        teachers=teachers,
        quantize_from=None,
    )
    return Cadence.of(run)


def has_work(cadence, step):
    return cadence.should_log(step) or cadence.should_save(step)


def test_steps_of_the_log_are_every_nth_and_the_last():
    assert [step for step in range(1, 31) if cadence().should_log(step)] == [7, 14, 21, 28, 30]


def test_a_checkpoint_is_written_with_each_validation_too():
    steps = range(1, 31)
    assert [step for step in steps if cadence().should_validate(step)] == [12, 30]
    assert [step for step in steps if cadence().should_save(step)] == [10, 12, 20, 30]


def test_the_last_step_is_logged_and_saved_whatever_the_distances():
    run = cadence_of(17, every="1000")
    assert run.validation_steps == {17}
    assert run.should_log(17)
    assert run.should_save(17)
    assert not run.should_save(16)


@pytest.mark.parametrize("every", ["0.1", "0.3", "1", "1.5", "2"])
@pytest.mark.parametrize(("batch_size", "examples"), [(32, 100), (25, 100), (128, 100), (7, 1437)])
@pytest.mark.parametrize("total_steps", [1, 3, 30, 101])
def test_validation_is_at_the_first_step_that_ends_each_period(
    every, batch_size, examples, total_steps
):
    """In exact fractions, so that rounding shows: no period lost, none gained, none too late."""
    period = Fraction(every) * examples / batch_size  # in steps
    ends = {-(-k * period // 1) for k in range(1, int(total_steps / period) + 1)}
    run = cadence_of(total_steps, batch_size, examples, every)
    assert run.validation_steps == ends | {total_steps}


def test_the_distances_are_those_of_the_config():
    run = cadence_of(30)
    assert (run.total_steps, run.log_every, run.save_every, run.steps_per_call) == (30, 5, 9, 2)


@pytest.mark.parametrize(
    ("is_live", "options", "steps_per_call"),
    [(True, {}, 2), (False, {}, 1), (True, {"record": "d"}, 1), (True, {"replay": "d"}, 1)],
)
def test_a_teacher_that_answers_between_the_steps_has_calls_of_one(
    is_live, options, steps_per_call
):
    run = cadence_of(30, teachers=types.SimpleNamespace(is_live=is_live), **options)
    assert run.steps_per_call == steps_per_call


@pytest.mark.parametrize("size", [1, 2, 4, 30, 100])
@pytest.mark.parametrize("start", [0, 1, 11, 12, 29, 30])
def test_no_call_passes_a_step_with_work(start, size):
    run = cadence(steps_per_call=size)
    calls = list(run.calls(start, 30))
    assert [step for call in calls for step in call] == list(range(start, 30))
    for call in calls:
        assert not any(has_work(run, step) for step in range(call.start + 1, call.stop))


def test_calls_may_end_before_the_run_does():
    """A member of a cohort that is behind catches up to the others' step, which has no work."""
    run = cadence()
    assert not has_work(run, 19)
    assert [step for call in run.calls(5, 19) for step in call] == list(range(5, 19))
