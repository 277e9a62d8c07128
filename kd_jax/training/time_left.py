"""How long a run still takes: how often each kind of work is to come, and how long it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which imports JAX, and the report reads metrics without it
    from kd_jax.training.cadence import Cadence

VALIDATION, CHECKPOINT, COMPILATION = "validation", "checkpoint", "compilation"


class TimeLeft:
    """The work besides training steps: measured when it is done, and counted ahead.

    What is done once, as compiling, is to be kept out of what is measured of work that comes again.
    One object serves all members of a cohort, each of which validates and saves.
    """

    def __init__(
        self,
        cadence: Cadence,
        start: int = 0,
        end: int | None = None,
        members: int = 1,
        at_the_end: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Begin with nothing measured.

        Args:
          cadence: of the run.
          start: number of updates made.
          end: the step to which this start goes; None: the last.
          members: how many runs train together.
          at_the_end: what is measured after the last step, in validations.
          clock: gives seconds.
        """
        self._cadence, self._members, self._clock = cadence, members, clock
        self._end = cadence.total_steps if end is None else end
        self._at_the_end = at_the_end
        self._programs = cadence.programs(start, self._end)
        self._took: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        """Context of one piece of work of a kind; a piece that fails counts for nothing."""
        began = self._clock()
        yield
        self.add(kind, self._clock() - began)

    def add(self, kind: str, seconds: float) -> None:
        """Count one piece of work of a kind."""
        self._took.setdefault(kind, []).append(seconds)

    def seconds(self, step: int, seconds_per_step: float) -> float:
        """Return how long the run still takes after a step, as far as that is known.

        Args:
          step: number of updates made.
          seconds_per_step: of training alone.
        """
        rest = (self._end - step) * seconds_per_step
        counts = {
            VALIDATION: self._members
            * (self._cadence.validations_in(step, self._end) + self._at_the_end),
            CHECKPOINT: self._members * self._cadence.saves_in(step, self._end),
            COMPILATION: max(0, self._programs - len(self._took.get(COMPILATION, ()))),
        }
        return rest + sum(count * self._each(kind) for kind, count in counts.items())

    def words(self, step: int, seconds_per_step: float | None) -> str:
        """Return the same for people; what was not measured yet is named beside it.

        Args:
          step: number of updates made.
          seconds_per_step: of training alone; None if it is not known yet.
        """
        if seconds_per_step is None:
            return "?"
        text = duration(self.seconds(step, seconds_per_step))
        validations = self._members * self._cadence.validations_in(step, self._end)
        if validations and VALIDATION not in self._took:
            text += f" and {validations} validation{'s' if validations > 1 else ''}"
        return text

    def _each(self, kind: str) -> float:
        """Return how long a piece of work takes; the first may do more, and counts if alone."""
        took = self._took.get(kind, [])
        if kind != COMPILATION and len(took) > self._members:
            took = took[self._members :]
        return sum(took) / len(took) if took else 0.0


def duration(seconds: float) -> str:
    """Return seconds as people say them: `42s`, `3m05s`, `1h02m`, `2d03h`."""
    total = round(seconds)
    for unit, size, smaller_unit, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if total >= size:
            return f"{total // size}{unit}{total % size // part:02d}{smaller_unit}"
    return f"{total // 60}m{total % 60:02d}s" if total >= 60 else f"{total}s"
