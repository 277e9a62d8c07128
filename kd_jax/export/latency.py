"""How long a file takes for one image, and for a batch, on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

BATCHES = (1, 32)
_WARM_UP, _FEWEST, _MOST, _SECONDS = 5, 20, 300, 3.0


def measure(call: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> dict[str, dict]:
    """Return for each batch size the median and the 95th percentile in milliseconds.

    Args:
      call: answers uint8 `[n, H, W, 3]`.
      images: uint8 `[N, H, W, 3]`; repeated where there are fewer than a batch.

    Returns:
      batch size as text -> `p50_ms`, `p95_ms`, `runs`.
    """
    return {str(batch): of_batch(call, images, batch) for batch in BATCHES}


def of_batch(
    call: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int
) -> dict[str, float]:
    """Return `p50_ms`, `p95_ms` and `runs` of one batch size, see `measure`."""
    chosen = np.ascontiguousarray(images[np.arange(batch) % len(images)])
    for _ in range(_WARM_UP):
        call(chosen)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _FEWEST or (len(times) < _MOST and time.perf_counter() < end):
        start = time.perf_counter()
        call(chosen)
        times.append(1000.0 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times, (50, 95))
    return {"p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3), "runs": len(times)}
