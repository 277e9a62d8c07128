"""One side of a benchmark, in a process of its own: it works when it is told to, and waits.

Started by `benchmarks.harness` with one JSON argument. It sets up, warms up, and prints a line of
JSON; for every line `N` that it reads it makes N steps and prints how many seconds they took; at
`stop` it prints its peak memory. So two sides alternate, and never work at the same time.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_jax.kernels import lowering
from kd_jax.runtime import huge_pages

_IMAGES = 10_000
_WARM_UP_SECONDS = 10.0  # a step that takes longer is warm after one


def prepare(spec: dict[str, Any]) -> tuple[Callable[[int], None], Callable[[], None], dict]:
    """Return `step(n)`, `wait()`, and what to say about the set-up."""
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, 32, 32, 3), np.uint8)
    side, teacher, batch_size = spec["side"], spec.get("teacher"), spec["batch"]
    if side in ("torch", "study"):
        from benchmarks import torch_side

        if spec["work"] == "forward":
            form = spec["forms"]["forward"]["form"]
            step = torch_side.forward(spec["student"], images[:batch_size], form)
        elif side == "torch":
            forms = {work: found["form"] for work, found in spec["forms"].items()}
            step = torch_side.best_step(images, teacher, spec["student"], batch_size, forms)
        else:
            step = torch_side.study_step(images, teacher, spec["student"], batch_size)
        return step, lambda: None, {}
    import jax

    from benchmarks import jax_side

    jax.config.update("jax_enable_compilation_cache", False)
    context = lowering.forced("plain") if side == "plain" else contextlib.nullcontext()
    with context:  # traced within, at the first step
        if spec["work"] == "forward":
            step = jax_side.forward(images, spec["student"], batch_size)
            wait = lambda: None  # noqa: E731
        else:
            step, wait, parts = jax_side.train_step(images, teacher, spec["student"], batch_size)
        began = time.perf_counter()
        step(0)
        wait()
        said = {"first_step_seconds": round(time.perf_counter() - began, 1)}
    if spec.get("input"):
        views = jax_side.input_only(*parts)
        views(0)
        began = time.perf_counter()
        for number in range(20):
            views(number)
        said["input_seconds"] = (time.perf_counter() - began) / 20
    return step, wait, said


def main() -> None:
    """Serve one side."""
    spec = json.loads(sys.argv[1])
    step, wait, said = prepare(spec)
    began, number = time.perf_counter(), 0
    while number < 2 and (not number or time.perf_counter() - began < _WARM_UP_SECONDS):
        step(number)
        wait()
        number += 1
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        began = time.perf_counter()
        for _ in range(int(line)):
            step(number)
            number += 1
        wait()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    huge_pages.enable()
    main()
