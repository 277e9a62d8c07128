"""The certificate of a run's teachers: what they are, and their measures on the test split.

It is stored as `teacher.json` in the workdir when the run begins. A run can continue only with the
same teachers (`check_same`), and they must reach the accuracy that is claimed for them
(`check_claims`). `kd_jax.training.teacher_check` makes the certificate of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import catalog
from kd_jax.data import dataset as dataset_lib
from kd_jax.metrics import fidelity
from kd_jax.runtime import text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import heads
from kd_jax.teachers.teacher import Teachers
from kd_jax.weights import saved_network

_MEASURES = ("top1", "top5", "nll", "ece")  # of `fidelity.summary`: percent, `nll` in nats


def make(
    teachers: Teachers, logits: np.ndarray, labels: np.ndarray | None, fingerprint: str
) -> dict[str, Any]:
    """Return the content of `teacher.json`.

    Args:
      teachers: the loaded teachers.
      logits: float32 `[teachers, N, classes]` on the test split, each teacher with its own
        normalisation.
      labels: int `[N]`, labels of that split; None where nobody knows them: then nothing is
        measured.
      fingerprint: fingerprint of the data set.

    Returns:
      for one teacher its identity and its measures; for several the measures of the ensemble, and
      `members`, the certificate of each.
    """
    members = [
        _certificate_of(member.card, member_logits, labels, fingerprint)
        for member, member_logits in zip(teachers.members, logits, strict=True)
    ]
    if len(members) == 1:
        return members[0]
    measures = fidelity.summary(np.asarray(teachers.ensemble.mean(logits)), labels)
    return {
        "arch": teachers.arch,
        "sha256": teachers.sha256,
        "data_fingerprint": fingerprint,
        "split": "test",
        "examples": logits.shape[-2],
        "shares": list(teachers.ensemble.shares),
        **{name: measures[name] for name in _MEASURES if name in measures},
        "members": members,
    }


def _certificate_of(
    card: saved_network.ModelCard, logits: np.ndarray, labels: np.ndarray | None, fingerprint: str
) -> dict[str, Any]:
    measures = fidelity.summary(logits, labels)
    return {
        "arch": card.arch,
        "source": card.source,
        "sha256": card.sha256,
        "arrays_sha256": card.arrays_sha256,
        "dataset": card.dataset,
        "data_fingerprint": fingerprint,
        "split": "test",
        "examples": logits.shape[-2],
        "mean": list(card.mean),
        "std": list(card.std),
        **{name: measures[name] for name in _MEASURES if name in measures},
    }


def check_same(stored: dict[str, Any], teachers: Teachers, directory: Path) -> None:
    """Raise `UserError` unless the teachers are those that a run began with.

    Args:
      stored: content of the run's `teacher.json`. Old ones have only the digest of the file of
        weights, not of its arrays. Then a warning says that the check is incomplete.
      teachers: the loaded teachers.
      directory: workdir of the run.
    """
    members = stored.get("members", [stored])
    changed = []
    if len(members) != len(teachers.members):
        changed.append(f"{len(members)} teachers then, {len(teachers.members)} now")
    for then, now in zip(members, teachers.members, strict=False):
        field = "arrays_sha256" if "arrays_sha256" in then else "sha256"
        for name in (field, "arch", "mean", "std"):
            value = getattr(now.card, name)
            value = list(value) if isinstance(value, tuple) else value
            if then.get(name, value) != value:
                changed.append(f"{name} {then[name]} then, {value} now")
    if changed:
        raise UserError(
            f"the run in {directory} began with the teacher {stored.get('arch')}, and it is "
            f"another now ({'; '.join(changed)}): give it the same weights and normalisation, or "
            "take a new --workdir"
        )
    if not all("arrays_sha256" in member for member in members):
        logger.warning(
            "the run in %s is from before the arrays of teachers were hashed: if those of its "
            "teacher %s were replaced since, agreement and divergence are of another teacher",
            directory, stored.get("arch"),
        )  # fmt: skip


def differences(card: saved_network.ModelCard, dataset: dataset_lib.DataSet) -> list[str]:
    """Return in words how a data set differs from the one a network was measured on or made for.

    Compares the fingerprint of the test split and the size of images, as far as they are known. For
    imported weights the size is known if it was given at import, or if all images of their data set
    have one size.
    """
    words = []
    certificate = card.certificate or {}
    # What was measured is the test split, and of old runs only the fingerprint of all is known.
    name = "test_fingerprint" if "test_fingerprint" in certificate else "data_fingerprint"
    if name in certificate:
        is_test = name == "test_fingerprint"
        before, now = certificate[name], dataset.test_digest if is_test else dataset.fingerprint
        if before != now:
            whose = "test split" if is_test else "data"
            words.append(f"its {whose} had the fingerprint {before[:8]}, this has {now[:8]}")
    is_size_known = (
        card.certificate is not None
        or catalog.facts(card.dataset).image_size
        or card.image_shape[:2] != (catalog.IMAGE_SIZE,) * 2  # the default without --image_size
    )
    if is_size_known and card.image_shape != dataset.image_shape:
        (h, w, _), (height, width, _) = card.image_shape, dataset.image_shape
        subject = "its images had" if card.certificate else "it is for images of"
        words.append(f"{subject} {h} x {w} pixels, these have {height} x {width}")
    return words


def check_claims(
    teachers: Teachers,
    certified: dict[str, Any],
    options: ConfigDict,
    differing: Sequence[Sequence[str]] = (),
    advice: Sequence[str] = (),
) -> None:
    """Compare the measured top-1 of each teacher with its claimed top-1; stop or warn.

    Args:
      teachers: the loaded teachers. Each card has its claim; for the first teacher
        `options.claimed_top1` replaces it.
      certified: as `make` returns it.
      options: `config.teacher` with `tolerance_points` (percentage points) and `on_mismatch` (stop
        or warn).
      differing: `differences` of each teacher.
      advice: what to do about each teacher, where that is known.

    Raises:
      UserError: they differ by more than the tolerance, and `on_mismatch` is stop.
    """
    for number, member in enumerate(teachers.members):
        claimed = claim_of(teachers, number, options)
        if claimed is not None:
            measured = certified.get("members", [certified])[number]
            is_named = heads.names_of(member.card) is not None
            differing_from = differing[number] if differing else ()
            sentence = advice[number] if advice else ""
            _check_claim(measured, claimed, options, differing_from, is_named, sentence)


def claim_of(teachers: Teachers, number: int, options: ConfigDict) -> float | None:
    """Return the top-1 that is claimed for a teacher, in percent; None without a claim.

    Args:
      teachers: all of them.
      number: of the teacher.
      options: `config.teacher`, whose `claimed_top1` is for the first.
    """
    if number == 0 and options.claimed_top1 is not None:
        return float(options.claimed_top1)
    return teachers.members[number].card.claimed_top1


def _check_claim(
    certified: dict[str, Any],
    claimed_top1: float,
    options: ConfigDict,
    differing: Sequence[str],
    is_named: bool,
    advice: str,
) -> None:
    if abs(certified["top1"] - claimed_top1) <= options.tolerance_points:
        return
    cause = (
        f"likely its normalisation (mean {certified['mean']}, std {certified['std']}) or the file "
        f"(sha256 {certified['sha256'][:8]}) is not the one it was published with; correct "
        "config.teacher"
    )
    if differing:
        cause = f"that is of other data ({'; '.join(differing)}); correct config.dataset"
    if advice:
        cause = advice
    elif not is_named:
        cause += (
            "; or its outputs are in another order than the classes of the data, since it does not "
            "name its own: import it with --class_names"
        )
    of_few = text_tables.of_few(certified["examples"])
    message = (
        f"the teacher {certified['arch']} from {certified['source']} was expected to reach "
        f"{claimed_top1:.2f} % top-1 on the test split of {certified['dataset']}, but reaches "
        f"{certified['top1']:.2f} %{of_few}: {cause}, or accept it with "
        "--config.teacher.on_mismatch=warn"
    )
    if options.on_mismatch == "stop":
        raise UserError(message)
    logger.warning("the student gets a handicapped teacher: %s", message)
