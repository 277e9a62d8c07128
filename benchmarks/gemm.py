"""Print the float32 matrix product of numpy's BLAS, the best of several, in GFLOP/s.

A process of its own: BLAS reads its limits when numpy is imported.
"""

from __future__ import annotations

import time

import numpy as np

_SIZE, _REPEATS = 2048, 7


def main() -> None:
    """Measure and print."""
    a, b = np.ones((2, _SIZE, _SIZE), np.float32)
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    print(2 * _SIZE**3 / best / 1e9)


if __name__ == "__main__":
    main()
