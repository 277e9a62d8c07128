"""Sides that alternate A B A B in one run, each in its own process, and the ratios between them."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from types import TracebackType
from typing import Any

_TURN_SECONDS = 3.0  # about how long a side works before the other has its turn


class Side:
    """A `benchmarks.worker` process. A context manager."""

    def __init__(self, spec: dict[str, Any]):
        """Start it and wait until it has warmed up."""
        self.batch = spec["batch"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said = self._read()
        self._steps = max(1, round(_TURN_SECONDS / self._run(1)))
        self.peak_bytes = 0

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self.peak_bytes = int(self._ask("stop")["peak_bytes"])
        self._process.wait()

    def images_per_second(self) -> float:
        """Let it work for a turn; return its rate.

        The first step of a turn is not timed: after a pause a virtual machine may have lost the
        pages it had, and a training run does not pause.
        """
        self._run(1)
        return self._steps * self.batch / self._run(self._steps)

    def _run(self, steps: int) -> float:
        return float(self._ask(str(steps))["seconds"])

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side of the benchmark failed with code {self._process.wait()}")
        return json.loads(line)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one comparison gave: rates in images a second, of all turns in order."""

    rates: dict[str, list[float]]
    said: dict[str, dict[str, Any]]
    peak_bytes: dict[str, int]

    def median(self, side: str) -> float:
        """Return a side's median rate."""
        return statistics.median(self.rates[side])

    def ratios(self, first: str, second: str) -> tuple[float, float, float]:
        """Return median, least and greatest ratio of two sides' rates, turn by turn."""
        pairs = zip(self.rates[first], self.rates[second], strict=True)
        ratios = [a / b for a, b in pairs]
        return statistics.median(ratios), min(ratios), max(ratios)


def compare(specs: dict[str, dict[str, Any]], rounds: int) -> Measured:
    """Let the sides take turns; one works at a time.

    Args:
      specs: of `benchmarks.worker`, by the side's name.
      rounds: how often each has its turn.
    """
    sides = {name: Side(spec) for name, spec in specs.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for _ in range(rounds):
            for name, side in sides.items():
                rates[name].append(side.images_per_second())
    finally:
        for side in sides.values():
            side.__exit__(None, None, None)
    said = {name: side.said for name, side in sides.items()}
    return Measured(rates, said, {name: side.peak_bytes for name, side in sides.items()})


def gemm_peak(size: int = 2048, repeats: int = 7) -> float:
    """Return this machine's float32 matrix product, the best of several, in GFLOP/s."""
    import time

    import numpy as np

    a, b = np.ones((2, size, size), np.float32)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9
