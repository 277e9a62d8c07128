"""Does the input keep up? Streamed batches, and the views of a resident set, beside a fast step.

    python -m benchmarks.streaming [--batch=512] [--seconds=3] [--rounds=5]

The step is the cheapest that there is to feed: the study's student alone, on labels. Streamed
batches are what `kd_jax.data.prefetch` gives under mixup: every example's pixels and its partner's,
gathered on the host and placed on the devices, a thread ahead. The sides take turns in one process,
and each has the machine for itself in its turn. Have nothing else running.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

from absl import flags

from kd_jax.runtime import huge_pages, text_tables
from kd_jax.runtime.errors import run_command

_BATCH = flags.DEFINE_integer("batch", 512, "Images a step.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Of a turn.", lower_bound=0.1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of every side.", lower_bound=1)
_STUDENT = "mobilenet_v3_small"
_IMAGES = 50_000  # as CIFAR has


def rate(
    work: Callable[[int], None], wait: Callable[[], None], batch: int, seconds: float
) -> float:
    """Return the images a second of a turn; its first step is not timed."""
    work(0)
    wait()
    began = time.perf_counter()
    for number in itertools.count(1):
        work(number)
        if time.perf_counter() - began > seconds:
            wait()
            return number * batch / (time.perf_counter() - began)
    raise AssertionError("never here")


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    del argv
    batch_size = _BATCH.value
    import jax
    import numpy as np

    from benchmarks import jax_side
    from kd_jax.data import prefetch, sampler

    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, 32, 32, 3), np.uint8)
    step, wait, parts = jax_side.train_step(images, None, _STUDENT, batch_size)
    config, devices, _ = parts
    config.mixup.kind = "batch"  # of the views that are measured alone
    views = jax_side.input_only(*parts)

    def batch_of(number: int) -> sampler.Batch:
        return sampler.batch_at(number, batch_size, _IMAGES, seed=0)

    def feeder(source: np.ndarray | None) -> prefetch.Feeder:
        return prefetch.Feeder(
            batch_of,
            source,
            devices,
            partners=True,
            calls=(range(n, n + 1) for n in itertools.count()),
        )

    streamed, resident = feeder(images), feeder(None)
    sides: dict[str, tuple[Callable[[int], None], Callable[[], None]]] = {
        "step": (step, wait),
        "streamed": (lambda _: jax.block_until_ready(streamed.next()), lambda: None),
        "indices": (lambda _: resident.next(), lambda: None),
        "views": (views, lambda: None),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_ROUNDS.value):
        for name, (work, until) in sides.items():
            rates[name].append(rate(work, until, batch_size, _SECONDS.value))
    streamed.close()
    resident.close()
    titles = {
        "step": f"a step of {_STUDENT}, from labels",
        "streamed": "batches streamed to the devices",
        "indices": "batches of a resident set: indices",
        "views": "views of a resident set, mixup and all: the whole input",
    }
    rows = [["what", "images/s", "times the step's rate (least to greatest)", "of the step's time"]]
    for name, title in titles.items():
        ratios = [own / its for own, its in zip(rates[name], rates["step"], strict=True)]
        median = statistics.median(ratios)
        spread = f"{median:.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append([title, f"{statistics.median(rates[name]):,.0f}", spread, f"{1 / median:.1%}"])
    print(text_tables.markdown(rows))


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
