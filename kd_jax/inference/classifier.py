"""A network that is ready to be shown images, whatever it was stored as. Imports no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.metrics import fidelity
from kd_jax.runtime.errors import DivergedError, UserError

LOGITS, PROBABILITIES = "logits", "probabilities"
_SLACK = 0.5  # of a probability, or of a sum of them


class Choice(NamedTuple):
    """A class that a network finds probable.

    Attributes:
      label: index of the output.
      name: of the class; its number where nobody knows a name.
      probability: in [0, 1].
    """

    label: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network that classifies images.

    Attributes:
      name: of its architecture or its file.
      origin: where it comes from, in words.
      image_shape: `(H, W, C)` of its images.
      num_classes: width of its output.
      class_names: of its outputs; None where nobody knows them.
      call: uint8 `[n, H, W, C]` to float32 `[n, classes]`.
      outputs: what `call` returns: `logits` or `probabilities`.
      facts: what else is known of it: `top1` (percent) and `top1_of`, what it was measured on or
        that it is only claimed, in words; `params`, `bytes`, `runtime`.
    """

    name: str
    origin: str
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None
    call: Callable[[np.ndarray], np.ndarray]
    outputs: str = LOGITS
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        return self.image_shape[:2]

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of each class.

        Args:
          images: uint8 `[n, H, W, C]` with at least one image.

        Returns:
          float64 `[n, classes]`.

        Raises:
          UserError: an answer is not finite, no probability, or not one of each class.
        """
        answers = self.call(images)
        expected = (len(images), self.num_classes)
        if answers.shape != expected:
            raise UserError(
                f"{self.name} returns {list(answers.shape)} for {len(images)} images, expected "
                f"{list(expected)}: export it again"
            )
        try:
            fidelity.check_finite(answers, f"the {self.name}'s")
        except DivergedError as error:
            raise UserError(f"{error}: it cannot classify them; take another checkpoint") from None
        if self.outputs == PROBABILITIES:
            found = answers.astype(np.float64)
            sums = found.sum(axis=-1)
            # Of int8 files each is rounded to a 256th: to none of many classes' small ones.
            slack = _SLACK + self.num_classes / 512
            if found.min() < -_SLACK or abs(sums - 1).max() > slack:
                raise UserError(
                    f"{self.name} is said to return probabilities, and returns numbers from "
                    f"{found.min():.3g} to {found.max():.3g} with sums from {sums.min():.3g} to "
                    f"{sums.max():.3g}: its card or its name of the output is wrong; export it "
                    "again"
                )
            return found
        exponentials = np.exp(answers.astype(np.float64) - answers.max(axis=-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))

    def top(self, probabilities: np.ndarray, count: int) -> list[Choice]:
        """Return the most probable classes, the first one first; of equals the lower label.

        Args:
          probabilities: of one image, `[classes]`.
          count: how many, at most.
        """
        names = self.shown_names
        order = np.argsort(-probabilities, kind="stable")[:count].tolist()
        return [Choice(label, names[label], float(probabilities[label])) for label in order]


def why_not_comparable(networks: Sequence[Classifier]) -> str | None:
    """Return in words why classes of networks cannot be told to be the same; None if they can."""
    if all(network.class_names for network in networks):
        shared = set.intersection(*(set(network.class_names or ()) for network in networks))
        return None if shared else "they have no name of a class in common"
    counts = [network.num_classes for network in networks]
    if len(set(counts)) == 1:
        return None
    words = " and ".join(map(str, counts))
    return f"they have {words} classes, and not all of them name theirs"


def is_same(networks: Sequence[Classifier], choices: Sequence[Choice]) -> bool:
    """Tell whether networks choose the same class: by its name, or else by its label.

    Args:
      networks: at least one.
      choices: of each network.
    """
    has_names = all(network.class_names for network in networks)
    return len({choice.name if has_names else choice.label for choice in choices}) == 1
