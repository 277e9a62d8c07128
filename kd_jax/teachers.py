"""Teachers: loaded from wherever they are, frozen, and never taken on trust.

A teacher under the wrong normalisation, or with its weights in the wrong place, still gives
probabilities, only worse ones: the student pays and nobody sees why. So before a run its teacher is
measured on the test split, and the certificate is kept with the run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd_jax import (
    checks,
    data,
    fidelity,
    files,
    models,
    published,
    state_files,
    torch_import,
    weights,
)
from kd_jax.console import logger
from kd_jax.ensemble import Ensemble
from kd_jax.errors import UserError, local

HALF = (0.5, 0.5, 0.5)  # the study's code normalises every network's pixels by this mean and std


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network: what it is, how to apply it, and its variables."""

    card: weights.ModelCard
    network: models.Network
    variables: Any


@dataclasses.dataclass(frozen=True)
class Teachers:
    """All teachers of a run, and how they speak together."""

    members: tuple[Teacher, ...]
    ensemble: Ensemble

    @property
    def variables(self) -> tuple[Any, ...]:
        """Of each member."""
        return tuple(member.variables for member in self.members)

    @property
    def arch(self) -> str:
        """The members' architectures, joined by `+`."""
        return "+".join(member.card.arch for member in self.members)

    @property
    def sha256(self) -> str:
        """Of the weights; of several, the hash of their hashes."""
        hashes = [member.card.sha256 for member in self.members]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )


def load(options: ConfigDict, dataset_name: str) -> Teachers:
    """Load the teachers that `config.teacher` names; the data itself is not needed.

    Args:
      options: `config.teacher`.
      dataset_name: which the teachers must have been made for, without a version.

    Raises:
      UserError: weights are not there, not readable, or not this network's; or a teacher is there
        twice.
    """
    members = []
    for path, arch in [(options.weights, options.arch), *((path, "") for path in options.ensemble)]:
        card, variables = read(path, arch, dataset_name)
        if options.normalisation == "half":
            card = dataclasses.replace(card, mean=HALF, std=HALF)
        members.append(Teacher(card, card.network(options.dtype), variables))
    _check_different(members)
    shares = options.shares or (1,) * len(members)
    ensemble = Ensemble(
        networks=tuple(member.network for member in members),
        shares=tuple(share / sum(shares) for share in shares),
        combine=options.combine,
    )
    return Teachers(tuple(members), ensemble)


def _check_different(members: Sequence[Teacher]) -> None:
    """Raise `UserError` if a teacher is there twice, under whatever path."""
    first: dict[Any, Teacher] = {}
    for member in members if len(members) > 1 else ():
        key = weights.digest_of(member.variables), member.card.mean, member.card.std
        if key in first:
            raise UserError(
                f"the teachers {first[key].card.source} and {member.card.source} of "
                "config.teacher.weights and config.teacher.ensemble are the same network: name "
                "each once, and give it more weight with config.teacher.shares"
            )
        first[key] = member


def read(
    source: str, arch: str, dataset_name: str, field: str = "config.teacher"
) -> tuple[weights.ModelCard, Any]:
    """Return the card and the variables of one network.

    Args:
      source: a file of weights, a directory made by `import_teacher`, or the workdir of a finished
        run.
      arch: what it must be; a file needs it, for a directory it may be empty.
      dataset_name: what it must have been made for.
      field: the part of the config that names it, for what is said when it does not fit.

    Raises:
      UserError: it is not there, not readable, or something else.
    """
    path = local(source, f"{field}.weights")
    if not path.exists():
        raise UserError(
            f"no network at {source}: expected {field}.weights to be a file of weights, a "
            "directory made by import_teacher, or the workdir of a finished run; "
            f"{checks.ways_to_a_teacher(arch, dataset_name)}"
        )
    if path.is_file():
        if not arch:
            raise UserError(
                f"{field}.arch is empty, expected the architecture of {path}: the file does not "
                f"name it; one of {', '.join(models.MODELS)}"
            )
        card, variables = import_file(arch, path, dataset_name)
    else:
        if not (path / weights.CARD_FILE).exists() and (path / "config.json").exists():
            raise UserError(
                f"the run in {path} is not finished, so it has no network to give: run its command "
                "again until it ends"
            )
        card, variables = weights.load(path)
    if arch and card.arch != arch:
        raise UserError(f"{field}.arch is {arch}, but {path} holds a {card.arch}: change one")
    if dataset_name in data.NUM_CLASSES:
        check_classes(card, dataset_name, data.NUM_CLASSES[dataset_name])
    return card, variables


def check_classes(card: weights.ModelCard, dataset_name: str, num_classes: int) -> None:
    """Raise `UserError` unless a network's head is as wide as the data set has classes."""
    if card.num_classes != num_classes:
        raise UserError(
            f"the network {card.source} knows {card.num_classes} classes, but {dataset_name} has "
            f"{num_classes}: take one of the same data set"
        )


def check_images(
    card: weights.ModelCard, dataset_name: str, image_shape: tuple[int, int, int]
) -> None:
    """Raise `UserError` unless a network's weights are right for images of this shape."""
    network = card.network()
    if models.flat_shapes(network, card.image_shape) != models.flat_shapes(network, image_shape):
        raise UserError(
            f"the network {card.source} is for images of {card.image_shape[0]} x "
            f"{card.image_shape[1]} pixels, but those of {dataset_name} have {image_shape[0]} x "
            f"{image_shape[1]}: set config.dataset.image_size, or take another network"
        )


def import_file(
    arch: str,
    path: Path,
    dataset_name: str,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    num_classes: int | None = None,
    image_size: int = data.IMAGE_SHAPE[0],
) -> tuple[weights.ModelCard, dict[str, Any]]:
    """Return the card and the Flax variables of a network in a file of PyTorch-named weights.

    A file of an architecture whose weights are published claims their published accuracy, until
    somebody says otherwise: a run that uses it measures it.

    Args:
      arch: name in the zoo.
      path: of the file.
      dataset_name: what it was trained on; gives its classes, and its normalisation by default.
      normalisation: mean and std of pixels in [0, 1], one value a channel.
      num_classes: where the data set is not one that is known by name.
      image_size: pixels a side.

    Raises:
      UserError: the file or the architecture is not what it should be.
    """
    normalisation = normalisation or data.NORMALISATION.get(dataset_name)
    num_classes = num_classes or data.NUM_CLASSES.get(dataset_name)
    if normalisation is None or num_classes is None:
        raise UserError(
            f"the classes and the normalisation of networks for {dataset_name} are not known: "
            f"import {path} with kd_jax.import_teacher and --num_classes, --mean and --std"
        )
    network = models.build(arch, num_classes, *normalisation)
    state_dict = state_files.read(path)
    image_shape = (image_size, image_size, 3)
    variables = torch_import.from_state_dict(network, state_dict, image_shape)
    entry = published.TABLE.get((dataset_name, arch))
    card = weights.ModelCard(
        arch=arch,
        num_classes=network.num_classes,
        image_shape=image_shape,
        mean=network.mean,
        std=network.std,
        dataset=dataset_name,
        claimed_top1=entry.top1 if entry else None,
        source=path.name,
        sha256=files.sha256_of(path),
    )
    return card, variables


def certificate(
    its: Teachers, logits: np.ndarray, labels: np.ndarray, fingerprint: str
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


_CERTIFIED = ("top1", "top5", "nll", "ece")


def _certificate_of(
    card: weights.ModelCard, logits: np.ndarray, labels: np.ndarray, fingerprint: str
) -> dict[str, Any]:
    measured = fidelity.summary(logits, labels)
    return {
        "arch": card.arch,
        "source": card.source,
        "sha256": card.sha256,
        "dataset": card.dataset,
        "data_fingerprint": fingerprint,
        "split": "test",
        "examples": len(labels),
        "mean": list(card.mean),
        "std": list(card.std),
        **{name: measured[name] for name in _CERTIFIED},
    }


def check_claims(its: Teachers, certified: dict[str, Any], options: ConfigDict) -> None:
    """Stop, or warn, where a teacher misses the accuracy that is claimed for it.

    Args:
      its: the teachers; each card has its own claim, and `options.claimed_top1` is the first's.
      certified: as `certificate` returns it.
      options: `config.teacher`: `tolerance_points`, and `on_mismatch` (stop or warn).

    Raises:
      UserError: the measured top-1 is off by more than the tolerance and `on_mismatch` is stop.
    """
    for number, member in enumerate(its.members):
        claimed = member.card.claimed_top1
        if number == 0 and options.claimed_top1 is not None:
            claimed = options.claimed_top1
        if claimed is not None:
            _check_claim(certified.get("members", [certified])[number], claimed, options)


def _check_claim(certified: dict[str, Any], claimed_top1: float, options: ConfigDict) -> None:
    if abs(certified["top1"] - claimed_top1) <= options.tolerance_points:
        return
    message = (
        f"the teacher {certified['arch']} from {certified['source']} was expected to reach "
        f"{claimed_top1:.2f} % top-1 on the test split of {certified['dataset']}, but reaches "
        f"{certified['top1']:.2f} %: likely its normalisation (mean {certified['mean']}, std "
        f"{certified['std']}) or the file (sha256 {certified['sha256'][:8]}) is not the one it was "
        "published with; correct config.teacher, or accept it with "
        "--config.teacher.on_mismatch=warn"
    )
    if options.on_mismatch == "stop":
        raise UserError(message)
    logger.warning("the student gets a handicapped teacher: %s", message)
