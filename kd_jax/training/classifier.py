"""A stored network, with its teacher where that is asked for, ready to be shown any images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import models
from kd_jax.data.dataset import DataSet
from kd_jax.data.splits import Split
from kd_jax.metrics import fidelity
from kd_jax.models import zoo
from kd_jax.runtime import atomic_files
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import DivergedError, UserError, reachable
from kd_jax.teachers import certificate, heads, load
from kd_jax.teachers.teacher import Teachers
from kd_jax.training import saved_student, workdir
from kd_jax.training.evaluator import Predictor
from kd_jax.training.teacher_source import ask_about
from kd_jax.weights import saved_network

KEPT, BEST, LAST = "kept", "best", "last"  # which variables of a run


@dataclasses.dataclass(frozen=True)
class Stored:
    """A network as it was stored, before it lies on a device.

    Attributes:
      network: with its own normalisation.
      variables: in host memory, or on the devices of a run.
      image_shape: `(H, W, C)` of its images.
      class_names: of its outputs; None where nobody knows them.
      origin: which of a run's networks it is, in words.
      teachers: of its run; None where they were not asked for.
    """

    network: models.Network
    variables: Any
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    origin: str
    teachers: Teachers | None = None


def find(directory: str | Path, which: str = KEPT, *, with_teachers: bool = False) -> Stored:
    """Return the network in a directory.

    Args:
      directory: workdir of a run; for `kept` also any other with `model.json` and
        `model.safetensors`.
      which: `kept`: the network that a finished run keeps, for which no data is read. `best` or
        `last`: a checkpoint, for which the run's data must be there.
      with_teachers: load the teachers of the run too.

    Raises:
      UserError: it is not there, or damaged; or the run had no teacher, or it is not there any
        more.
    """
    path = reachable(directory, "--model")
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise UserError(
            f"--model={directory} {what}: expected the workdir of a run, or a directory made by "
            "kd_jax.import_teacher"
        )
    if which != KEPT:
        return _checkpoint(path, which, with_teachers)
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
    claim = "" if card.claimed_top1 is None else f", {card.claimed_top1:.2f} % top-1 on test"
    return Stored(
        card.network(),
        variables,
        card.image_shape,
        heads.names_of(card),
        f"the network that was kept{claim}",
        _teachers(path, card) if with_teachers else None,
    )


def _checkpoint(directory: Path, which: str, with_teachers: bool) -> Stored:
    run, step, variables = saved_student.student(directory, which)
    if with_teachers and (run.teachers is None or run.teachers.is_recorded):
        raise _no_teacher(directory, run.teachers is not None)
    return Stored(
        run.student.as_trained(variables),
        variables,
        run.dataset.image_shape,
        run.dataset.class_names,
        f"the checkpoint of step {step}, {'the newest' if which == LAST else 'best on validation'}",
        run.teachers if with_teachers else None,
    )


def _teachers(directory: Path, card: saved_network.ModelCard) -> Teachers:
    """Return the teachers of the run that kept a network: the very ones, or an error."""
    if not (directory / workdir.CONFIG_FILE).exists():
        raise UserError(
            f"{directory} holds a network and not the run that trained it, so its teacher is not "
            "known: take the run's workdir, or leave --compare out"
        )
    options = workdir.load_config(directory).teacher
    if not options.weights:
        raise _no_teacher(directory, bool(options.replay))
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


def _no_teacher(directory: Path, is_recorded: bool) -> UserError:
    teacher = (
        "a recording of its teacher, which knows no other images" if is_recorded else "no teacher"
    )
    return UserError(f"the run in {directory} had {teacher}: leave --compare out")


class Classifier:
    """A stored network on one device."""

    def __init__(self, stored: Stored, batch_size: int):
        """Place a network, and its teachers where they were loaded.

        Args:
          stored: the network.
          batch_size: images that are looked at together; fewer are filled up.
        """
        devices = jax.local_devices()[:1]
        self._stored, self._batch_size = stored, batch_size
        self._student = Predictor(stored.network.logits, devices, batch_size)
        self._variables = devices_lib.replicate(stored.variables, devices)
        if stored.teachers is not None:
            self._teacher_variables = devices_lib.replicate(stored.teachers.variables, devices)
            if stored.teachers.is_live:
                self._teachers = Predictor(stored.teachers.ensemble.logits, devices, batch_size)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the network's probability of each class.

        Args:
          images: uint8 `[N, H, W, C]`.

        Returns:
          float64 `[N, classes]`.

        Raises:
          UserError: a logit is not finite.
        """
        logits = self._student.logits(self._variables, images)
        return _softmax(logits, f"the {self._stored.network.arch}'s")

    def teacher_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return `probabilities` of the teachers, of several their ensemble's."""
        teachers = self._stored.teachers
        assert teachers is not None
        if teachers.is_live:
            logits = self._teachers.logits(self._teacher_variables, images)
        else:
            logits = ask_about(teachers, self._teacher_variables, images, self._batch_size)
        return _softmax(
            np.asarray(teachers.ensemble.mean(logits)), f"the teacher {teachers.arch}'s"
        )


def _softmax(logits: np.ndarray, whose: str) -> np.ndarray:
    try:
        fidelity.check_finite(logits, whose)
    except DivergedError as error:
        raise UserError(f"{error}: it cannot classify them; take another checkpoint") from None
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
