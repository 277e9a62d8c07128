"""Early stopping: training ends when validation has not been better for long enough."""

from __future__ import annotations

from collections.abc import Sequence

from kd_jax.runtime.console import logger


class Patience:
    """Tells when the last `limit` validations brought nothing better; never for a limit of 0."""

    def __init__(self, limit: int, earlier: Sequence[float]):
        """Begin with the top-1 of the validations before this start, in percent, oldest first."""
        self._limit, self._top1 = limit, list(earlier)

    def add(self, top1: float) -> None:
        """Count one more validation, in percent."""
        self._top1.append(top1)

    def is_over(self) -> bool:
        """Return whether training ends, and say so if it does."""
        if not self._limit or not self._top1:
            return False
        since_best = len(self._top1) - 1 - self._top1.index(max(self._top1))
        if since_best >= self._limit:
            logger.info("validation was best %d times ago: training ends", self._limit)
        return since_best >= self._limit
