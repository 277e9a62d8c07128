"""Measures of accuracy and fidelity, against plain loops and known cases."""

import numpy as np
import pytest

from kd_jax.metrics import fidelity
from kd_jax.runtime.errors import DivergedError

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((200, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 200)


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_equals_sorting(k):
    hits = [label in np.argsort(-row)[:k] for row, label in zip(LOGITS, LABELS, strict=True)]
    assert fidelity.top_k(LOGITS, LABELS, k) == pytest.approx(100 * np.mean(hits))


MEASURES = {
    "top_k": lambda logits: fidelity.top_k(logits, LABELS, 1),
    "negative_log_likelihood": lambda logits: fidelity.negative_log_likelihood(logits, LABELS),
    "calibration_error": lambda logits: fidelity.calibration_error(logits, LABELS),
    "agreement": lambda logits: fidelity.agreement(logits, LOGITS),
    "agreement of the teacher": lambda logits: fidelity.agreement(LOGITS, logits),
    "agreement_top5": lambda logits: fidelity.agreement_top5(logits, LOGITS),
    "agreement_top5 of the teacher": lambda logits: fidelity.agreement_top5(LOGITS, logits),
    "entropy": fidelity.entropy,
    "confusion": lambda logits: fidelity.confusion(logits, LABELS, np.arange(10)),
    "kl_to_teacher": lambda logits: fidelity.kl_to_teacher(logits, LOGITS),
    "kl_to_teacher of the teacher": lambda logits: fidelity.kl_to_teacher(LOGITS, logits),
    "summary": lambda logits: fidelity.summary(logits, LABELS),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_have_no_measure(name, bad):
    """All NaN was right every time: nothing stood before the label."""
    MEASURES[name](LOGITS)
    logits = LOGITS.copy()
    logits[[3, 7], 2] = bad
    with pytest.raises(DivergedError, match="not finite for 2 of 200 images"):
        MEASURES[name](logits)


def test_ties_are_not_all_won():
    """A student that says the same of every class is right one time in ten, as arg-max is."""
    logits, labels = np.zeros((10, 10)), np.arange(10)
    assert fidelity.top_k(logits, labels, 1) == pytest.approx(10)
    assert fidelity.top_k(logits, labels, 5) == pytest.approx(50)


def test_likelihood_and_divergence():
    uniform = np.zeros((200, 10))
    assert fidelity.negative_log_likelihood(uniform, LABELS) == pytest.approx(np.log(10))
    assert fidelity.kl_to_teacher(LOGITS, LOGITS) == pytest.approx(0, abs=1e-12)
    log_probs = fidelity.log_softmax(LOGITS)
    entropy = -(np.exp(log_probs) * log_probs).sum(-1).mean()
    assert fidelity.kl_to_teacher(uniform, LOGITS) == pytest.approx(np.log(10) - entropy)
    extreme = np.array([[1e4, -1e4]])
    assert np.isfinite(fidelity.kl_to_teacher(-extreme, extreme))


def test_calibration_error():
    sure = np.where(np.eye(10)[LABELS] > 0, 50.0, 0.0)
    assert fidelity.calibration_error(sure, LABELS) == pytest.approx(0, abs=1e-6)
    assert fidelity.calibration_error(sure, (LABELS + 1) % 10) == pytest.approx(100)
    half = np.arange(200) % 2
    assert fidelity.calibration_error(sure, (LABELS + half) % 10) == pytest.approx(50)


def test_agreement():
    other = LOGITS.copy()
    other[:50] = -other[:50]
    assert fidelity.agreement(LOGITS, LOGITS) == 100
    assert fidelity.agreement(other, LOGITS) == pytest.approx(75)


def test_summary_has_what_a_result_needs():
    assert set(fidelity.summary(LOGITS, LABELS)) == {"top1", "top5", "nll", "ece"}
    with_teacher = fidelity.summary(LOGITS, LABELS, LOGITS)
    assert with_teacher["agreement"] == 100


def test_entropy_and_the_teachers_choice_among_five():
    uniform = np.zeros((4, 10))
    assert fidelity.entropy(uniform) == pytest.approx(np.log(10))
    assert fidelity.entropy(1e4 * np.eye(10)) == pytest.approx(0.0, abs=1e-6)
    student = np.tile(np.arange(10.0)[::-1], (3, 1))  # chooses 0, then 1, ...
    teacher = np.eye(10)[[0, 4, 5]]
    assert fidelity.agreement(student, teacher) == pytest.approx(100 / 3)
    assert fidelity.agreement_top5(student, teacher) == pytest.approx(200 / 3)


def test_confusion_counts_what_was_taken_for_what():
    labels = np.array([0, 0, 1, 2, 3])
    logits = np.eye(4)[[0, 1, 1, 3, 3]]
    by_class = fidelity.confusion(logits, labels, np.arange(4))
    assert by_class.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    by_group = fidelity.confusion(logits, labels, np.array([0, 0, 1, 1]))
    assert by_group.tolist() == [[3, 0], [0, 2]]


@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_partners_are_one_shuffled_cycle(count):
    partners = fidelity.partners(count)
    seen, index = set(), 0
    while index not in seen:
        seen.add(index)
        index = int(partners[index])
    assert seen == set(range(count))


def test_in_a_set_that_lies_class_by_class_partners_are_of_other_classes():
    labels = np.repeat(np.arange(8), 50)
    assert np.mean(labels != labels[fidelity.partners(len(labels))]) > 0.8


def test_what_is_said_of_mixtures():
    labels, others = np.array([0, 1, 2, 0, 3]), np.array([1, 2, 0, 3, 3])
    probabilities = np.array(
        [
            [0.6, 0.3, 0.05, 0.05],  # both, leaning to the first
            [0.5, 0.3, 0.1, 0.1],  # neither is its first choice
            [0.2, 0.1, 0.6, 0.1],  # both
            [0.1, 0.3, 0.1, 0.5],  # the second image's, then another
            [0.1, 0.1, 0.1, 0.7],  # two images of one class: not counted
        ]
    )
    said = fidelity.of_mixtures(np.log(probabilities), labels, others)
    assert said["names_one"] == pytest.approx(75.0)
    assert said["names_both"] == pytest.approx(50.0)
    assert said["mass"] == pytest.approx(100 * np.mean([0.9, 0.4, 0.8, 0.6]))
    assert said["lean"] == pytest.approx(np.mean([6 / 9, 3 / 4, 6 / 8, 1 / 6]))
