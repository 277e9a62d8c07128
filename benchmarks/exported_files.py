"""Latency of exported files side by side: an int8 student beside its teacher in floating point.

    python -m benchmarks.exported_files teacher.tflite student.tflite [--threads=2]

Files of kd_jax.export, each run by its own runtime on random images of its size, in turns; printed
are the medians over the turns of the median latency, and how many times faster each is than the
first. Have nothing else running.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from absl import flags

from kd_jax.export import latency
from kd_jax.inference import files
from kd_jax.runtime import huge_pages, processor, text_tables
from kd_jax.runtime.errors import UserError, run_command

_THREADS = flags.DEFINE_integer(
    "threads", None, "Threads of each file; none given: a core each.", lower_bound=1
)
_TURNS = 3


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    places = [Path(place) for place in argv[1:]]
    if len(places) < 2:
        raise UserError(
            f"{len(places)} file(s) were named: expected two or more, the teacher first"
        )
    threads = _THREADS.value or processor.cores()
    opened = [files.open_file(place, threads) for place in places]
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (max(latency.BATCHES), *each.size, 3), np.uint8) for each in opened
    ]
    took: dict[tuple[int, int], list[float]] = {}
    for _ in range(_TURNS):
        for number, network in enumerate(opened):
            for batch in latency.BATCHES:
                times = latency.of_batch(network.call, images[number], batch)
                took.setdefault((number, batch), []).append(times["p50_ms"])
    heads = [f"p50 ms, {batch} image{'s' if batch > 1 else ''}" for batch in latency.BATCHES]
    rows = [["file", "bytes", *(word for head in heads for word in (head, "times faster"))]]
    for number, place in enumerate(places):
        row = [place.name, f"{place.stat().st_size:,}"]
        for batch in latency.BATCHES:
            ours, first = median(took[number, batch]), median(took[0, batch])
            row += [f"{ours:.2f}", f"{first / ours:.1f}"]
        rows.append(row)
    print(text_tables.markdown(rows))
    print(f"\nprocessor class {processor.describe()}, {threads} threads, {_TURNS} turns")


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main, takes_words=True)
