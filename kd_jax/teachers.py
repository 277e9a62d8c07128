"""Teachers: loaded from wherever they are, frozen, and never taken on trust.

A teacher under the wrong normalisation, or with its weights in the wrong place, still gives
probabilities, only worse ones: the student pays and nobody sees why. So before a run its teacher is
measured on the test split, and the certificate is kept with the run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax import data, models, torch_file, torch_import, weights
from kd_jax.console import logger
from kd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network: what it is, how to apply it, and its variables."""

    card: weights.ModelCard
    network: models.Network
    variables: Any


def load(options: ConfigDict, dataset_name: str) -> Teacher:
    """Load the teacher that `config.teacher` names; the data itself is not needed.

    Args:
      options: `config.teacher`. `weights` is a PyTorch file, a directory made by `import_teacher`,
        or the workdir of a finished run.
      dataset_name: `config.dataset.name`, which the teacher must have been made for.

    Raises:
      UserError: the weights are not there, not readable, or not this network's.
    """
    path = Path(options.weights).expanduser()
    if not path.exists():
        raise UserError(
            f"no teacher at {options.weights}: expected config.teacher.weights to be a PyTorch "
            "file, a directory made by import_teacher, or the workdir of a finished run "
            "(configs/teacher.py trains one)"
        )
    if path.is_file():
        if not options.arch:
            raise UserError(
                f"config.teacher.arch is empty, expected the architecture of {path}: a PyTorch "
                f"file does not name it; one of {', '.join(models.MODELS)}"
            )
        card, variables = import_file(options.arch, path, dataset_name)
    else:
        if not (path / weights.CARD_FILE).exists() and (path / "config.json").exists():
            raise UserError(
                f"the run in {path} is not finished, so it has no teacher to give: run its command "
                "again until it ends"
            )
        card, variables = weights.load(path)
    if options.arch and card.arch != options.arch:
        raise UserError(
            f"config.teacher.arch is {options.arch}, but {path} holds a {card.arch}: change one"
        )
    if card.num_classes != data.NUM_CLASSES[dataset_name]:
        raise UserError(
            f"the teacher in {path} knows {card.num_classes} classes, but {dataset_name} has "
            f"{data.NUM_CLASSES[dataset_name]}: take a teacher of the same data set"
        )
    return Teacher(card, card.network(), variables)


def import_file(
    arch: str,
    path: Path,
    dataset_name: str,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> tuple[weights.ModelCard, dict[str, Any]]:
    """Return the card and the Flax variables of a network in a PyTorch file.

    Args:
      arch: name in the zoo.
      path: of the file.
      dataset_name: what it was trained on; gives its classes, and its normalisation by default.
      normalisation: mean and std of pixels in [0, 1], one value a channel.

    Raises:
      UserError: the file or the architecture is not what it should be.
    """
    normalisation = normalisation or data.NORMALISATION.get(dataset_name)
    if normalisation is None:
        raise UserError(
            f"the normalisation of networks for {dataset_name} is not known: import {path} with "
            "kd_jax.import_teacher and --mean and --std"
        )
    network = models.build(arch, data.NUM_CLASSES[dataset_name], *normalisation)
    state_dict = torch_file.read_state_dict(path)
    variables = torch_import.from_state_dict(network, state_dict, data.IMAGE_SHAPE)
    card = weights.ModelCard(
        arch=arch,
        num_classes=network.num_classes,
        image_shape=data.IMAGE_SHAPE,
        mean=network.mean,
        std=network.std,
        dataset=dataset_name,
        claimed_top1=None,
        source=path.name,
        sha256=weights.sha256_of(path),
    )
    return card, variables


def certificate(
    teacher: Teacher, measured: dict[str, float], examples: int, fingerprint: str
) -> dict[str, Any]:
    """Return what is stored as `teacher.json`.

    Args:
      teacher: as loaded.
      measured: `fidelity.summary` of its logits on the test split, under its own normalisation.
      examples: in that split.
      fingerprint: of the data set.
    """
    card = teacher.card
    return {
        "arch": card.arch,
        "source": card.source,
        "sha256": card.sha256,
        "dataset": card.dataset,
        "data_fingerprint": fingerprint,
        "split": "test",
        "examples": examples,
        "mean": list(card.mean),
        "std": list(card.std),
        **{name: measured[name] for name in ("top1", "top5", "nll", "ece")},
    }


def check_claim(certified: dict[str, Any], claimed_top1: float | None, options: ConfigDict) -> None:
    """Stop, or warn, where a teacher misses the accuracy that is claimed for it.

    Args:
      certified: as `certificate` returns it.
      claimed_top1: percent; None claims nothing.
      options: `config.teacher`: `tolerance_points`, and `on_mismatch` (stop or warn).

    Raises:
      UserError: the measured top-1 is off by more than the tolerance and `on_mismatch` is stop.
    """
    if claimed_top1 is None:
        return
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
    logger.warning("%s", message)
