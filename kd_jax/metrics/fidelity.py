"""Accuracy of a student, and its agreement with its teacher: NumPy functions of logits.

Each takes all examples of a split at once, so no result is an average of averages. All of them
raise `DivergedError` for logits that are not finite: no comparison with NaN is true, so a label
with a NaN would have rank 0 and count as correct.
"""

from __future__ import annotations

import functools

import numpy as np

from kd_jax.runtime.errors import DivergedError


def check_finite(logits: np.ndarray, owner: str = "the") -> None:
    """Raise `DivergedError` unless all logits are finite.

    Args:
      logits: float `[..., N, classes]`.
      owner: the network and the images, as the error's sentence begins.
    """
    mask = np.isfinite(logits).all(axis=-1)
    if not mask.all():
        raise DivergedError(
            f"{owner} logits are not finite for {mask.size - np.count_nonzero(mask):,} of "
            f"{mask.size:,} images"
        )


def choices(logits: np.ndarray) -> np.ndarray:
    """Return the class of the largest logit, int `[N]`; of equal logits the lowest class."""
    check_finite(logits)
    return logits.argmax(axis=-1)


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return float64 log-probabilities `[N, classes]` of `logits / temperature`."""
    check_finite(logits)
    scaled_logits = logits.astype(np.float64) / temperature
    scaled_logits = scaled_logits - scaled_logits.max(axis=-1, keepdims=True)
    return scaled_logits - np.log(np.exp(scaled_logits).sum(axis=-1, keepdims=True))


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rank of the label, int `[N]`, from 0; of equal logits the lower class is first."""
    check_finite(logits)
    label_logits = np.take_along_axis(logits, labels[:, None], axis=-1)
    is_lower_class = np.arange(logits.shape[-1]) < labels[:, None]
    return np.sum((logits > label_logits) | ((logits == label_logits) & is_lower_class), axis=-1)


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the percentage of examples whose label is among the k largest logits."""
    return 100.0 * float(np.mean(label_ranks(logits, labels) < k))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of -log p(label), in nats."""
    return -float(np.mean(np.take_along_axis(log_softmax(logits), labels[:, None], axis=-1)))


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error in percent, over equal-width bins of confidence.

    Source: Guo et al. 2017, section 2.
    """
    probs = np.exp(log_softmax(logits))
    confidence = probs.max(axis=-1)
    is_correct = probs.argmax(axis=-1) == labels
    bin_numbers = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_numbers, confidence - is_correct, minlength=bins)
    return 100.0 * float(np.abs(gaps).sum()) / len(labels)


def agreement(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Return the percentage of examples on which both choose the same class."""
    return 100.0 * float(np.mean(choices(student_logits) == choices(teacher_logits)))


def agreement_top5(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Return the percentage of examples whose teacher's class is among the student's first 5."""
    return top_k(student_logits, choices(teacher_logits), 5)


def entropy(logits: np.ndarray) -> float:
    """Return the mean entropy of the predictions at temperature 1, in nats."""
    log_probs = log_softmax(logits)
    return -float(np.mean(np.sum(np.exp(log_probs) * log_probs, axis=-1)))


def confusion(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the confusion matrix of groups of classes, int `[groups, groups]`, counts of examples.

    Args:
      logits: float `[N, classes]`.
      labels: int `[N]`.
      groups: int `[classes]`, the group of each class; `arange(classes)` for single classes.

    Returns:
      rows are true groups, columns predicted ones.
    """
    size = int(groups.max()) + 1
    counts = np.zeros((size, size), int)
    np.add.at(counts, (groups[labels], groups[choices(logits)]), 1)
    return counts


def kl_to_teacher(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Return the mean KL(teacher || student) at temperature 1, in nats."""
    teacher_log_probs, student_log_probs = log_softmax(teacher_logits), log_softmax(student_logits)
    gaps = np.exp(teacher_log_probs) * (teacher_log_probs - student_log_probs)
    return float(np.mean(gaps.sum(axis=-1)))


@functools.cache
def partners(count: int) -> np.ndarray:
    """Return the index of the image that each of `count` is mixed with, int32 `[count]`.

    They follow each other in a shuffled order that never changes: neighbours in a set are often of
    one class, as those of a folder are.
    """
    order = np.random.default_rng(0).permutation(count).astype(np.int32)
    result = np.empty_like(order)
    result[order] = np.roll(order, -1)
    result.flags.writeable = False
    return result


def of_mixtures(logits: np.ndarray, labels: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Return what a network says of mixtures of two images, at temperature 1.

    Args:
      logits: float `[N, classes]`, of the mixtures.
      labels, others: int `[N]`, of the two images of each; pairs of one class are left out.

    Returns:
      `names_one`, how often its first choice is one of the two classes; `names_both`, how often its
      first two are these; `mass`, the probability of both together, all in percent; and `lean`, the
      mean share of `labels` in that probability, which for a network that knows what it looks at is
      the share of the image.
    """
    unlike = labels != others
    logits, labels, others = logits[unlike], labels[unlike], others[unlike]
    two = np.stack([labels, others], axis=-1)
    probabilities = np.take_along_axis(np.exp(log_softmax(logits)), two, axis=-1)
    first = choices(logits)[:, None]
    # As in `label_ranks`, a class of equal logit counts as being ahead.
    ahead = (logits >= np.take_along_axis(logits, two, axis=-1).min(axis=-1, keepdims=True)).sum(-1)
    mass = probabilities.sum(axis=-1)
    return {
        "names_one": 100 * float(np.mean((first == two).any(axis=-1))),
        "names_both": 100 * float(np.mean(ahead == 2)),
        "mass": 100 * float(np.mean(mass)),
        "lean": float(np.mean(probabilities[:, 0] / np.maximum(mass, 1e-30))),
    }


def summary(
    logits: np.ndarray, labels: np.ndarray | None, teacher_logits: np.ndarray | None = None
) -> dict[str, float]:
    """Return every measure of one split, rounded to six digits after the point.

    Args:
      logits: float `[N, classes]`.
      labels: int `[N]`; None where nobody knows them.
      teacher_logits: float `[N, classes]`, of the same examples in the same order.

    Returns:
      with labels `top1`, `top5`, `ece` (percent), `nll` (nats), and with a teacher `agreement`,
      `agreement_top5` (percent) and `kl_to_teacher` (nats).
    """
    measures: dict[str, float] = {}
    if labels is not None:
        measures |= {
            "top1": top_k(logits, labels, 1),
            "top5": top_k(logits, labels, 5),
            "nll": negative_log_likelihood(logits, labels),
            "ece": calibration_error(logits, labels),
        }
    if teacher_logits is not None:
        measures["agreement"] = agreement(logits, teacher_logits)
        measures["agreement_top5"] = agreement_top5(logits, teacher_logits)
        measures["kl_to_teacher"] = kl_to_teacher(logits, teacher_logits)
    return {name: round(value, 6) for name, value in measures.items()}
