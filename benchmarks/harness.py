"""Sides that alternate A B A B in one run, each in its own process, and the ratios between them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from benchmarks import limits
from kd_jax.runtime import caches, processor

_TURN_SECONDS = 3.0  # about how long a side works before the other has its turn
_SEARCHED_IMAGES = 256  # that a frozen network is asked about at once while its form is looked for


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """Limit all processes started within to the class of processors; keep what Inductor compiles.

    Raises:
      UserError: `KD_JAX_CPU` is no class, or one that the machine does not have.
    """
    kept = caches.directory("inductor") / processor.cache_key()
    ours = limits.environment() | {"TORCHINDUCTOR_CACHE_DIR": str(kept)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@functools.cache
def rival(work: str, arch: str, batch: int = _SEARCHED_IMAGES) -> dict[str, Any]:
    """Return PyTorch's fastest form of a network, as `torch_search` says it; once in a run.

    Args:
      work: `forward` or `train`.
      arch: the network.
      batch: images a step. A frozen network's form is that of `_SEARCHED_IMAGES` for all.
    """
    spec = json.dumps({"work": work, "arch": arch, "batch": batch})
    return _output("benchmarks.torch_search", spec)


def best_torch(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the side that is the best PyTorch: with the forms of its networks."""
    found = {}
    if spec["work"] == "forward":
        found["forward"] = rival("forward", spec["student"])
    else:
        if spec.get("teacher"):
            found["forward"] = rival("forward", spec["teacher"])
        found["train"] = rival("train", spec["student"], spec["batch"])
    return spec | {"side": "torch", "forms": found}


def label(spec: dict[str, Any]) -> str:
    """Return what the forms of the best PyTorch side are called."""
    names = {"forward": "teacher" if spec["work"] == "distil" else "", "train": "student"}
    found = spec["forms"].items()
    return "; ".join(f"{names[work]} {said['label']}".strip() for work, said in found)


def _output(module: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{module} failed with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


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
        seconds = self._run(1)
        self._steps = max(1, round(_TURN_SECONDS / seconds))
        self._is_slow = seconds > _TURN_SECONDS
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
        pages it had, and a training run does not pause. Where one step takes a whole turn, that
        is lost in it, and only time would be.
        """
        if not self._is_slow:
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


def gemm_peak() -> float:
    """Return the float32 matrix product within the class of processors, in GFLOP/s."""
    return float(_output("benchmarks.gemm"))
