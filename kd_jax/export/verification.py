"""Compare what a file answers with what the network itself answers, image by image."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kd_jax.data.splits import stratified_indices
from kd_jax.export import function
from kd_jax.export.formats import Tolerance
from kd_jax.export.source import Source
from kd_jax.metrics import fidelity
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import DivergedError, UserError

TIE = 1e-4  # two classes whose probabilities differ by less have no order
_LEAST = 1e-38  # of a probability before its logarithm


@dataclasses.dataclass(frozen=True)
class Reference:
    """Images, and what the float network says of them.

    Attributes:
      images: uint8 `[N, H, W, 3]`.
      labels: int `[N]`, as indices of the network's outputs.
      logits: float32 `[N, outputs]`.
      split_size: examples of the test split that the images are from.
      float_logits: of the same weights without rounding, for a network that was trained with int8's
        numbers; None for others.
    """

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    split_size: int
    float_logits: np.ndarray | None = None

    def in_floats(self) -> Reference:
        """Return what the same weights say without rounding."""
        if self.float_logits is None:
            return self
        return dataclasses.replace(self, logits=self.float_logits, float_logits=None)


def reference(source: Source, count: int | None) -> Reference:
    """Return the test images to verify on, each class in proportion, and the network's logits.

    Args:
      source: the network and its data.
      count: how many images; None for the whole test split.

    Raises:
      UserError: there are not so many, or the network's logits are not finite.
    """
    test = source.dataset.test
    if count is not None and count > len(test):
        raise UserError(
            f"--images={count}, but the test split of {source.dataset.name} has {len(test)}: "
            "leave --images out to verify on all of them"
        )
    images, labels = test.images, test.labels
    if count is not None and count < len(test):
        chosen = stratified_indices(labels, count, seed=0)
        images, labels = images[chosen], labels[chosen]
    logger.info("verifying on %s of %s test images", f"{len(images):,}", f"{len(test):,}")
    logits = _logits(source, images)
    float_logits = _logits(source.in_floats(), images) if source.is_quantized else None
    outputs = np.asarray(source.outputs)[labels]
    return Reference(images, outputs, logits, len(test), float_logits)


def _logits(source: Source, images: np.ndarray) -> np.ndarray:
    """Return what the network says of images; raise `UserError` if it is not finite."""
    logits = function.student_logits(source.network, source.variables, images)
    try:
        fidelity.check_finite(logits, "the network's")
    except DivergedError as error:
        raise UserError(
            f"{error}, so there is nothing to export: take an earlier checkpoint "
            "(--checkpoint=best)"
        ) from None
    return logits


def measure(answers: np.ndarray, outputs: str, expected: Reference) -> dict[str, Any]:
    """Return the measures of a file's answers.

    Args:
      answers: float32 `[N, outputs]`, logits or probabilities.
      outputs: which of them.
      expected: what the network says.

    Returns:
      `top1`, `top5`, `ece` (percent), `nll` (nats); `agreement`, the percentage of images with the
      class that the network gives, and `same`, which counts ties as equal; `kl_to_network` (nats);
      `largest_difference` of a probability; `network_top1`, `network_ece`; `float_top1` of the same
      weights without rounding, where the network rounds; and `per_class`, for each output the
      percentage that is correct, None without an image.

    Raises:
      DivergedError: answers are not finite.
    """
    fidelity.check_finite(answers)
    logits = answers if outputs == function.LOGITS else np.log(np.maximum(answers, _LEAST))
    of_network = np.exp(fidelity.log_softmax(expected.logits))
    differences = np.abs(np.exp(fidelity.log_softmax(logits)) - of_network)
    first, chosen = fidelity.choices(expected.logits), fidelity.choices(logits)
    rows = np.arange(len(logits))
    is_same = of_network[rows, first] - of_network[rows, chosen] <= TIE
    network = fidelity.summary(expected.logits, expected.labels)
    in_floats = {}
    if expected.float_logits is not None:
        in_floats["float_top1"] = fidelity.summary(expected.float_logits, expected.labels)["top1"]
    counts = fidelity.confusion(logits, expected.labels, np.arange(logits.shape[-1]))
    return {
        **fidelity.summary(logits, expected.labels),
        "agreement": round(fidelity.agreement(logits, expected.logits), 6),
        "same": round(100.0 * float(np.mean(is_same)), 6),
        "kl_to_network": round(fidelity.kl_to_teacher(logits, expected.logits), 9),
        "largest_difference": float(differences.max()),
        "network_top1": network["top1"],
        "network_ece": network["ece"],
        **in_floats,
        "per_class": [
            round(100.0 * float(row[label]) / float(row.sum()), 4) if row.sum() else None
            for label, row in enumerate(counts)
        ],
    }


def miss(measures: dict[str, Any], tolerance: Tolerance) -> str | None:
    """Return in words by how much a file misses its tolerance; None if it keeps it."""
    difference, limit = measures["largest_difference"], tolerance.probability
    if limit is not None and difference > limit:
        return (
            f"a probability differs by {difference:.2g} from the network's, and at most {limit:g} "
            "is allowed"
        )
    if measures["same"] < tolerance.same:
        return (
            f"{measures['same']:.2f} % of the images get the class that the network gives them, "
            f"and at least {tolerance.same:g} % must"
        )
    lost = measures["network_top1"] - measures["top1"]
    if tolerance.lost is not None and lost > tolerance.lost:
        return (
            f"its top-1 is {measures['top1']:.2f} %, {lost:.2f} points below the network's "
            f"{measures['network_top1']:.2f} %, and at most {tolerance.lost:g} points may be lost"
        )
    return None
