"""Measure the teachers of a run on the test split before the student trains.

With a wrong normalisation, or with weights in the wrong place, a teacher still returns
probabilities. They are only worse, and nothing but the student's accuracy would show it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.runtime import atomic_files, processes, text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import certificate
from kd_jax.training import input_search, workdir
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.setup import RunSetup


def certify(run: RunSetup, evaluator: Evaluator, directory: Path) -> dict[str, Any] | None:
    """Return the certificate of a run's teachers: the stored one, or measured now.

    The stored one is used if it is of the same data set. Nothing is written.

    Args:
      run: the run.
      evaluator: evaluator of that run.
      directory: workdir of that run.

    Returns:
      content of `teacher.json`, see `certificate.make`; None without a teacher.

    Raises:
      UserError: the run began with another teacher, or this one does not reach its claimed
        accuracy.
    """
    teachers = run.teachers
    if teachers is None:
        return None
    stored = processes.on_first(lambda: atomic_files.read_json(directory / workdir.TEACHER_FILE))
    if stored is not None:
        certificate.check_same(stored, teachers, directory)
        if stored.get("data_fingerprint") == run.dataset.fingerprint:
            return stored
    differences = [certificate.differences(member.card, run.dataset) for member in teachers.members]
    for member, words in zip(teachers.members, differences, strict=True):
        if words:
            logger.warning(
                "the teacher %s was %s other data: %s", member.card.source,
                "measured on" if member.card.certificate else "made for", "; ".join(words),
            )  # fmt: skip
    labels = run.dataset.test.known_labels
    if labels is None:
        logger.warning(
            "the teacher %s is not measured: the test split has no labels", teachers.arch
        )
    else:
        logger.info("measuring the teacher %s on the test split", teachers.arch)
    logits = evaluator.members_logits("test")
    for member, member_logits in zip(teachers.members, logits, strict=True):
        if (member_logits >= 0).all() and np.allclose(member_logits.sum(-1), 1.0, atol=1e-3):
            raise UserError(
                f"the teacher {member.card.arch} returns probabilities, expected logits: remove "
                "its softmax, or let it return their logarithm"
            )
    measured = certificate.make(teachers, logits, labels, run.dataset.fingerprint)
    if labels is None:
        return measured
    for network in (*measured.get("members", ()), measured):
        logger.info(
            "teacher %s: top-1 %.2f %%, top-5 %.2f %%%s, sha256 %s",
            network["arch"],
            network["top1"],
            network["top5"],
            text_tables.of_few(network["examples"]),
            network["sha256"],
        )
    advice = _search_inputs(run, measured, labels)
    certificate.check_claims(teachers, measured, run.config.teacher, differences, advice)
    return measured


def _search_inputs(run: RunSetup, measured: dict[str, Any], labels: np.ndarray) -> list[str]:
    """Try other normalisations for each teacher that misses its claim, or has none.

    What was found is added to the certificates.

    Returns:
      for each teacher what to do, or an empty text.
    """
    teachers, options = run.teachers, run.config.teacher
    assert teachers is not None
    advice = []
    for number, member in enumerate(teachers.members):
        certified = measured.get("members", [measured])[number]
        claimed = certificate.claim_of(teachers, number, options)
        reached = claimed is not None and (
            abs(certified["top1"] - claimed) <= options.tolerance_points
        )
        if reached or (member.network is None and member.host is None):
            advice.append("")
            continue
        sentence, candidates = input_search.advise(member, run.dataset.test.images, labels)
        certified["normalisations_tried"] = [each._asdict() for each in candidates]
        if sentence and claimed is None:
            logger.warning("%s", sentence)
        advice.append(sentence)
    return advice
