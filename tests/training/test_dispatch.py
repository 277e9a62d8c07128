"""How steps are cut into calls, and how many calls are on their way at once."""

import pytest

from kd_jax.runtime import signals
from kd_jax.training.dispatch import InFlight, calls


@pytest.mark.parametrize("size", [1, 2, 5, 8, 50])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 20), (3, 20), (19, 20), (0, 8)])
@pytest.mark.parametrize(
    "marks",
    [[], [20], [1, 2, 3], [4, 4, 8, 8], [0, 3, 7], [25, 30], [7, 15, 23]],
    ids=["none", "the end", "each", "twice", "before the start", "beyond the end", "some"],
)
def test_calls_are_all_steps_in_order_and_none_passes_a_mark(start, end, size, marks):
    ranges = list(calls(start, end, size, marks))
    assert [step for call in ranges for step in call] == list(range(start, end))
    assert {len(call) for call in ranges} <= {1, size}
    assert {call.stop for call in ranges} >= {mark for mark in marks if start < mark <= end}


@pytest.mark.parametrize(("start", "end"), [(0, 0), (5, 5), (6, 5)])
def test_nothing_is_called_where_nothing_is_left(start, end):
    assert list(calls(start, end, 4, [1, 2, 3])) == []


def test_single_steps_only_fill_gaps():
    assert [len(call) for call in calls(0, 23, 4, [8, 10, 23])] == [4, 4, 1, 1, 4, 4, 4, 1]
    assert [len(call) for call in calls(0, 3, 4, [])] == [1, 1, 1]


class Metric:
    """Stands for an array that a device computes; notes when it is waited for."""

    def __init__(self, number, waits):
        self.number, self.waits = number, waits

    def block_until_ready(self):
        self.waits.append(self.number)
        return self


class Votes:
    """The votes of a call, which may only be read when the call is finished."""

    def __init__(self, number, waits, vote):
        self.number, self.waits, self.vote = number, waits, vote

    def __int__(self):
        assert self.number in self.waits, "a vote was waited for while its call was on its way"
        return self.vote


def test_at_most_two_calls_are_on_their_way():
    waits = []
    in_flight = InFlight(signals.StopRequest())
    for number in range(5):
        in_flight.add({"loss": Metric(number, waits)}, None)
        assert waits == list(range(number - 1))  # the oldest first, and none too early


def test_one_process_stops_as_soon_as_it_is_asked():
    stop = signals.StopRequest()
    stop.has_unsaved_work(True)
    in_flight = InFlight(stop)
    assert in_flight.add({}, None) is None
    stop.request("SIGTERM")
    assert in_flight.add({}, None) == "SIGTERM"


def reasons(votes, stop):
    """Return what each call answers in a process whose calls have these votes."""
    waits = []
    in_flight = InFlight(stop)
    return [
        in_flight.add({"loss": Metric(number, waits)}, Votes(number, waits, vote))
        for number, vote in enumerate(votes)
    ]


def test_several_processes_stop_in_the_same_step_whichever_was_asked():
    """What decides are the votes of a finished call, which are the same in all of them."""
    asked = signals.StopRequest()
    asked.has_unsaved_work(True)
    asked.request("SIGTERM")
    votes = [0, 1, 1, 1]
    expected = [None, None, None, "a signal to one of its processes"]
    assert reasons(votes, asked) == expected
    assert reasons(votes, signals.StopRequest()) == expected


def test_a_process_that_was_asked_waits_until_all_know():
    asked = signals.StopRequest()
    asked.has_unsaved_work(True)
    asked.request("SIGINT")
    assert reasons([0] * 6, asked) == [None] * 6
