"""Networks in directories: of a run or an import, with the teacher where that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import models
from kd_jax.data.dataset import DataSet
from kd_jax.data.splits import Split
from kd_jax.distillation import augment
from kd_jax.inference.classifier import Classifier
from kd_jax.models import zoo
from kd_jax.runtime import atomic_files
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import certificate, heads, load
from kd_jax.teachers.teacher import Teachers
from kd_jax.training import saved_student, workdir
from kd_jax.training.local_predictor import LocalPredictor
from kd_jax.weights import saved_network

KEPT, BEST, LAST = "kept", "best", "last"  # which variables of a run
_BATCH = 64  # images that are looked at together


@dataclasses.dataclass(frozen=True)
class Stored:
    """A network as it was stored, before it lies on a device.

    Attributes:
      network: with its own normalisation.
      variables: in host memory, or on the devices of a run.
      image_shape: `(H, W, C)` of its images.
      class_names: of its outputs; None where nobody knows them.
      origin: which of a run's networks it is, in words.
      top1: percent on the test split, as its card says; None where it says nothing.
      top1_of: what that was measured on, or that it is only claimed, in words.
      teachers: of its run; None where they were not asked for.
    """

    network: models.Network
    variables: Any
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    origin: str
    top1: float | None = None
    top1_of: str | None = None
    teachers: Teachers | None = None


def find(
    directory: str | Path,
    which: str = KEPT,
    *,
    with_teachers: bool = False,
    option: str = "--model",
    teacher_option: str = "--compare",
) -> Stored:
    """Return the network in a directory.

    Args:
      directory: workdir of a run; for `kept` also any other with `model.json` and
        `model.safetensors`.
      which: `kept`: the network that a finished run keeps, for which no data is read. `best` or
        `last`: a checkpoint, for which the run's data must be there.
      with_teachers: load the teachers of the run too.
      option, teacher_option: that named the directory, and asked for its teachers.

    Raises:
      UserError: it is not there, or damaged; or the run had no teacher, or it is not there any
        more.
    """
    path = reachable(directory, option)
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise UserError(
            f"{option}={directory} {what}: expected the workdir of a run, or a directory made by "
            "kd_jax.import_teacher"
        )
    if which != KEPT:
        return _checkpoint(path, which, teacher_option if with_teachers else None)
    if not (path / saved_network.CARD_FILE).exists() and (path / workdir.CONFIG_FILE).exists():
        raise UserError(
            f"the run in {path} is not finished, so it keeps no network yet: run its command again "
            "until it ends, or take --checkpoint=last or best"
        )
    devices_lib.prepare(1, 1)
    arch = saved_network.load_card(path).arch
    if arch.startswith(zoo.PYTHON):
        raise UserError(
            f"the network in {path} is the module {arch.removeprefix(zoo.PYTHON)}, which was given "
            "as a Python object: give it again, to kd_jax.load(DIRECTORY, module), and call the "
            "student there"
        )
    card, variables = saved_network.load(path)
    top1, top1_of = _accuracy(card)
    says = "" if top1 is None else f", {top1:.2f} % top-1 ({top1_of})"
    return Stored(
        card.network(),
        variables,
        card.image_shape,
        heads.names_of(card),
        f"the network that was kept{says}",
        top1,
        top1_of,
        _teachers(path, card, teacher_option) if with_teachers else None,
    )


def _accuracy(card: saved_network.ModelCard) -> tuple[float | None, str | None]:
    """Return the accuracy that a card gives, and whether it was measured, in words."""
    certificate = card.certificate or {}
    if (top1 := certificate.get("top1")) is not None:
        examples = certificate.get("examples")
        return top1, f"measured on all {examples:,} test images" if examples else "measured"
    if card.claimed_top1 is not None:
        return card.claimed_top1, "claimed, not measured"
    return None, None


def _checkpoint(directory: Path, which: str, teacher_option: str | None) -> Stored:
    run, step, variables = saved_student.student(directory, which)
    if teacher_option and (run.teachers is None or run.teachers.is_recorded):
        raise _no_teacher(directory, run.teachers is not None, teacher_option)
    return Stored(
        run.student.as_trained(variables),
        variables,
        run.dataset.image_shape,
        run.dataset.class_names,
        f"the checkpoint of step {step}, {'the newest' if which == LAST else 'best on validation'}",
        teachers=run.teachers if teacher_option else None,
    )


def _teachers(directory: Path, card: saved_network.ModelCard, option: str) -> Teachers:
    """Return the teachers of the run that kept a network: the very ones, or an error."""
    if not (directory / workdir.CONFIG_FILE).exists():
        raise UserError(
            f"{directory} holds a network and not the run that trained it, so its teacher is not "
            f"known: take the run's workdir, name the teacher ({option}=PLACE), or leave {option} "
            "out"
        )
    options = workdir.load_config(directory).teacher
    if not options.weights:
        raise _no_teacher(directory, bool(options.replay), option)
    # What the card tells of the data is all that the teachers are fitted to.
    empty = Split(np.empty((0, *card.image_shape), np.uint8), np.empty(0, np.int32))
    data = DataSet(
        name=card.dataset,
        train=empty,
        val=empty,
        test=empty,
        num_classes=card.num_classes,
        mean=card.mean,
        std=card.std,
        fingerprint="",
        class_names=card.class_names,
    )
    teachers = load.load(options, card.dataset)
    teachers = load.fit(teachers, options, data, data.class_names)
    stored = atomic_files.read_json(directory / workdir.TEACHER_FILE)
    if stored is not None:
        certificate.check_same(stored, teachers, directory)
    return teachers


def _no_teacher(directory: Path, is_recorded: bool, option: str) -> UserError:
    teacher = (
        "a recording of its teacher, which knows no other images" if is_recorded else "no teacher"
    )
    return UserError(
        f"the run in {directory} had {teacher}: leave {option} out, or name one, {option}=PLACE"
    )


def student(stored: Stored) -> Classifier:
    """Return the network itself, on one device."""
    network = stored.network
    return Classifier(
        name=network.arch,
        origin=stored.origin,
        image_shape=stored.image_shape,
        num_classes=network.num_classes,
        class_names=stored.class_names,
        call=LocalPredictor(network.logits, stored.variables, most=_BATCH).logits,
        facts={
            "runtime": "JAX",
            "params": sum(leaf.size for leaf in jax.tree.leaves(stored.variables["params"])),
            "top1": stored.top1,
            "top1_of": stored.top1_of,
        },
    )


def teacher(stored: Stored) -> Classifier:
    """Return the teachers of the run, of several their ensemble, with the classes of its data."""
    teachers = stored.teachers
    assert teachers is not None
    ask = _ask_live(teachers) if teachers.is_live else _ask_host(teachers)
    return Classifier(
        name=teachers.arch,
        origin="the teacher of the run",
        image_shape=stored.image_shape,
        num_classes=stored.network.num_classes,
        class_names=stored.class_names,
        call=lambda images: np.asarray(teachers.ensemble.mean(ask(images))),
        facts={"runtime": "JAX"},
    )


def _ask_live(teachers: Teachers) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives float32 `[teachers, n, classes]` by a program of JAX."""
    return LocalPredictor(teachers.ensemble.logits, teachers.variables, most=_BATCH).logits


def _ask_host(teachers: Teachers) -> Callable[[np.ndarray], np.ndarray]:
    """Return the same where a teacher runs outside of JAX."""
    variables = jax.device_put(teachers.variables, jax.local_devices()[0])
    question = jax.jit(lambda variables, images: teachers.ask(variables, augment.to_pixels(images)))

    def ask(images: np.ndarray) -> np.ndarray:
        parts = question(variables, images)
        return np.moveaxis(teachers.answer([np.asarray(part) for part in parts]), 1, 0)

    return ask
