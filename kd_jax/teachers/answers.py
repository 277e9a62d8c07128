"""Teachers' answers as a recording stores them: all logits, or the largest and the rest's mass.

Of many classes most have next to no probability. With `top` = k a recording stores of each answer
the k largest logits, their classes, and one number for the other C - k: the logit that each of them
would have if they had the rest's probability in equal shares,

    r = T (log sum_{j not in top} exp(z_j / T) - log(C - k)).

So at the temperature T of the recording the softened probability of each top class and of the rest
together are the teacher's own; what is lost is how the rest divides its part. At another
temperature the rest's part would be wrong too (too large above T, too small below it, because the
logits of the rest are not equal), so a replay at another one is refused (`recording`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_MOST_CLASSES = 2**16  # that two bytes number


class Form(NamedTuple):
    """How an answer is stored.

    Attributes:
      precision: of the logits, `float32` or `float16`.
      classes: of the teacher.
      top: how many logits are stored; 0: all.
    """

    precision: str
    classes: int
    top: int = 0

    def __str__(self) -> str:
        """Return the form in words."""
        return f"the top {self.top} in {self.precision}" if self.top else self.precision

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of one answer in a file."""
        if not self.top:
            return np.dtype((self.precision, (self.classes,)))
        number = np.uint16 if self.classes <= _MOST_CLASSES else np.uint32
        return np.dtype(
            [
                ("logits", self.precision, (self.top,)),
                ("classes", number, (self.top,)),
                ("rest", np.float32),
            ]
        )

    def pack(self, logits: np.ndarray, temperature: float) -> np.ndarray:
        """Return answers as they are stored, `[...]` of `dtype` (`[..., classes]` of all logits).

        Args:
          logits: float32 `[..., classes]`.
          temperature: T of the rest's mass.
        """
        with np.errstate(over="ignore"):  # the caller looks for what does not fit
            if not self.top:
                return logits.astype(self.precision)
            top = np.argpartition(logits, -self.top, axis=-1)[..., -self.top :]
            top.sort(axis=-1)
            packed = np.empty(logits.shape[:-1], self.dtype)
            packed["classes"] = top
            packed["logits"] = np.take_along_axis(logits, top, axis=-1)
        others = logits.astype(np.float64)
        np.put_along_axis(others, top, -np.inf, axis=-1)
        largest = others.max(axis=-1, keepdims=True)
        mean = np.exp((others - largest) / temperature).sum(axis=-1) / (self.classes - self.top)
        packed["rest"] = largest[..., 0] + temperature * np.log(mean)
        return packed

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """Return float32 logits `[..., classes]` of what `pack` returned."""
        if not self.top:
            return np.asarray(packed, np.float32)
        shape = (*packed.shape, self.classes)
        logits = np.broadcast_to(packed["rest"][..., None], shape).copy()
        top = packed["classes"].astype(np.int64)
        np.put_along_axis(logits, top, packed["logits"].astype(np.float32), axis=-1)
        return logits


def is_finite(packed: np.ndarray) -> bool:
    """Tell whether all numbers of packed answers are finite."""
    names = packed.dtype.names
    parts = [packed] if names is None else [packed["logits"], packed["rest"]]
    return all(bool(np.isfinite(part).all()) for part in parts)
