"""What a run's teachers were when it began: measured on the test split, and kept with the run.

A teacher under the wrong normalisation, or with its weights in the wrong place, still gives
probabilities, only worse ones: the student pays and nobody sees why. So before a run its teacher is
measured, and a run goes on with the very same teacher or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import dataset as dataset_lib
from kd_jax.metrics import fidelity
from kd_jax.runtime import atomic_files, processes
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import heads, load
from kd_jax.training import workdir
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.setup import RunSetup
from kd_jax.weights import saved_network

_CERTIFIED = ("top1", "top5", "nll", "ece")


def certify(run: RunSetup, evaluator: Evaluator, directory: Path) -> dict[str, Any] | None:
    """Measure the teacher before anything is learnt from it, unless this run already did.

    Args:
      run: whose teacher it is.
      evaluator: of that run.
      directory: of that run; nothing is written.

    Returns:
      what is stored as `teacher.json`; None without a teacher.

    Raises:
      UserError: the run began with another teacher, or this one misses its claim.
    """
    its = run.teachers
    if its is None:
        return None
    stored = processes.on_first(lambda: atomic_files.read_json(directory / workdir.TEACHER_FILE))
    if stored is not None:
        check_same(stored, its, directory)
        if stored.get("data_fingerprint") == run.dataset.fingerprint:
            return stored
    differing = [differences(member.card, run.dataset) for member in its.members]
    for member, words in zip(its.members, differing, strict=True):
        if words:
            logger.warning(
                "the teacher %s was %s other data: %s", member.card.source,
                "measured on" if member.card.certificate else "made for", "; ".join(words),
            )  # fmt: skip
    logger.info("measuring the teacher %s on the test split", its.arch)
    certified = certificate(
        its, evaluator.members_logits("test"), run.dataset.test.labels, run.dataset.fingerprint
    )
    for one in (*certified.get("members", ()), certified):
        logger.info(
            "teacher %s: top-1 %.2f %%, top-5 %.2f %%, sha256 %s",
            one["arch"],
            one["top1"],
            one["top5"],
            one["sha256"],
        )
    check_claims(its, certified, run.config.teacher, differing)
    return certified


def certificate(
    its: load.Teachers, logits: np.ndarray, labels: np.ndarray, fingerprint: str
) -> dict[str, Any]:
    """Return what is stored as `teacher.json`.

    Args:
      its: the teachers, as loaded.
      logits: float32 `[teachers, N, classes]` on the test split, each under its normalisation.
      labels: int `[N]`, of that split.
      fingerprint: of the data set.

    Returns:
      for one teacher what it is and its measures; for several the measures of what they say
      together, and `members`, a certificate each.
    """
    members = [
        _certificate_of(member.card, own, labels, fingerprint)
        for member, own in zip(its.members, logits, strict=True)
    ]
    if len(members) == 1:
        return members[0]
    together = fidelity.summary(np.asarray(its.ensemble.mean(logits)), labels)
    return {
        "arch": its.arch,
        "sha256": its.sha256,
        "data_fingerprint": fingerprint,
        "split": "test",
        "examples": len(labels),
        "shares": list(its.ensemble.shares),
        **{name: together[name] for name in _CERTIFIED},
        "members": members,
    }


def _certificate_of(
    card: saved_network.ModelCard, logits: np.ndarray, labels: np.ndarray, fingerprint: str
) -> dict[str, Any]:
    measured = fidelity.summary(logits, labels)
    return {
        "arch": card.arch,
        "source": card.source,
        "sha256": card.sha256,
        "arrays_sha256": card.arrays_sha256,
        "dataset": card.dataset,
        "data_fingerprint": fingerprint,
        "split": "test",
        "examples": len(labels),
        "mean": list(card.mean),
        "std": list(card.std),
        **{name: measured[name] for name in _CERTIFIED},
    }


def check_same(stored: dict[str, Any], its: load.Teachers, directory: Path) -> None:
    """Raise `UserError` unless the teachers are those that a run began with.

    Args:
      stored: the run's `teacher.json`. One from before arrays were hashed has the hash of the file
        that they came from alone: then it is said that this may not tell.
      its: the teachers, as loaded.
      directory: of the run.
    """
    members = stored.get("members", [stored])
    changed = []
    if len(members) != len(its.members):
        changed.append(f"{len(members)} teachers then, {len(its.members)} now")
    for then, now in zip(members, its.members, strict=False):
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
    if not all("arrays_sha256" in one for one in members):
        logger.warning(
            "the run in %s is from before the arrays of teachers were hashed: if those of its "
            "teacher %s were replaced since, agreement and divergence are of another teacher",
            directory, stored.get("arch"),
        )  # fmt: skip


def differences(card: saved_network.ModelCard, dataset: dataset_lib.DataSet) -> list[str]:
    """Say in what a data set is not the one that a network was measured on, or was made for.

    As far as is known: of weights from a file the size of their images is only where they were
    imported with one, or where all images of their data set have the same.
    """
    found = []
    fingerprint = (card.certificate or {}).get("data_fingerprint")
    if fingerprint is not None and fingerprint != dataset.fingerprint:
        found.append(
            f"its data had the fingerprint {fingerprint[:8]}, this has {dataset.fingerprint[:8]}"
        )
    has_size = (
        card.certificate is not None
        or card.dataset in dataset_lib.SMALL_IMAGES
        or card.image_shape
        != dataset_lib.IMAGE_SHAPE  # which is what a file has without --image_size
    )
    if has_size and card.image_shape != dataset.image_shape:
        (h, w, _), (height, width, _) = card.image_shape, dataset.image_shape
        its = "its images had" if card.certificate else "it is for images of"
        found.append(f"{its} {h} x {w} pixels, these have {height} x {width}")
    return found


def check_claims(
    its: load.Teachers,
    certified: dict[str, Any],
    options: ConfigDict,
    differing: Sequence[Sequence[str]] = (),
) -> None:
    """Stop, or warn, where a teacher misses the accuracy that is claimed for it.

    Args:
      its: the teachers; each card has its own claim, and `options.claimed_top1` is the first's.
      certified: as `certificate` returns it.
      options: `config.teacher`: `tolerance_points`, and `on_mismatch` (stop or warn).
      differing: `differences` of each teacher.

    Raises:
      UserError: the measured top-1 is off by more than the tolerance and `on_mismatch` is stop.
    """
    for number, member in enumerate(its.members):
        claimed = member.card.claimed_top1
        if number == 0 and options.claimed_top1 is not None:
            claimed = options.claimed_top1
        if claimed is not None:
            one = certified.get("members", [certified])[number]
            is_named = heads.names_of(member.card) is not None
            _check_claim(one, claimed, options, differing[number] if differing else (), is_named)


def _check_claim(
    certified: dict[str, Any],
    claimed_top1: float,
    options: ConfigDict,
    differing: Sequence[str],
    is_named: bool,
) -> None:
    if abs(certified["top1"] - claimed_top1) <= options.tolerance_points:
        return
    likely = (
        f"likely its normalisation (mean {certified['mean']}, std {certified['std']}) or the file "
        f"(sha256 {certified['sha256'][:8]}) is not the one it was published with; correct "
        "config.teacher"
    )
    if differing:
        likely = f"that is of other data ({'; '.join(differing)}); correct config.dataset"
    if not is_named:
        likely += (
            "; or its outputs are in another order than the classes of the data, since it does not "
            "name its own: import it with --class_names"
        )
    message = (
        f"the teacher {certified['arch']} from {certified['source']} was expected to reach "
        f"{claimed_top1:.2f} % top-1 on the test split of {certified['dataset']}, but reaches "
        f"{certified['top1']:.2f} %: {likely}, or accept it with "
        "--config.teacher.on_mismatch=warn"
    )
    if options.on_mismatch == "stop":
        raise UserError(message)
    logger.warning("the student gets a handicapped teacher: %s", message)
