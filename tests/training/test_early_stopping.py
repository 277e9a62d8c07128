"""Training ends when validation has not been better for long enough."""

import itertools
import logging

import pytest

from kd_jax.training.early_stopping import Patience


def end(limit, scores, num_earlier=0):
    """Return after how many validations training ends, those before this start counted; or None."""
    patience = Patience(limit, scores[:num_earlier])
    if patience.is_over():
        return num_earlier
    for number, top1 in enumerate(scores[num_earlier:], num_earlier + 1):
        patience.add(top1)
        if patience.is_over():
            return number
    return None


def test_it_ends_so_many_validations_after_the_best():
    assert end(2, [10.0, 30.0, 29.0, 20.0, 50.0]) == 4
    assert end(3, [10.0, 30.0, 29.0, 20.0, 50.0]) is None


def test_a_better_one_begins_the_count_anew():
    assert end(2, [10.0, 9.0, 11.0, 10.0, 12.0, 1.0]) is None
    assert end(2, [10.0, 9.0, 11.0, 10.0, 12.0, 1.0, 1.0]) == 7


def test_an_equal_one_is_not_better():
    assert end(2, [10.0, 10.0, 10.0]) == 3


@pytest.mark.parametrize("scores", [[], [5.0], [5.0] * 100])
def test_a_limit_of_0_never_ends_it(scores):
    assert end(0, scores) is None
    assert not Patience(0, scores).is_over()


def test_it_does_not_end_before_the_first_validation():
    assert not Patience(1, []).is_over()


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_resumed_run_ends_where_an_unbroken_one_does(limit):
    """Every order of few scores, broken off at each validation that leaves it unfinished."""
    for scores in itertools.product((1.0, 2.0, 3.0), repeat=5):
        unbroken = end(limit, scores)
        for num_earlier in range((unbroken or len(scores)) + 1):
            assert end(limit, scores, num_earlier) == unbroken


def test_that_training_ends_is_said_once_it_does(caplog):
    caplog.set_level(logging.INFO, "kd_jax")
    patience = Patience(2, [3.0, 2.0])
    assert not patience.is_over()
    assert not caplog.text
    patience.add(1.0)
    assert patience.is_over()
    assert "validation was best 2 times ago: training ends" in caplog.text
