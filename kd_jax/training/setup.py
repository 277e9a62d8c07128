"""From a config to the parts of a run: data, devices, networks, optimiser.

Everything that can be wrong with the input is found here, cheapest first, before anything is
compiled or written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax import models
from kd_jax.config import checks
from kd_jax.data import dataset as dataset_lib
from kd_jax.data import prefetch, sampler, tfds_source
from kd_jax.distillation import state as state_lib
from kd_jax.distillation.features import Features
from kd_jax.distillation.student import StudentSpec
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import processes, source_digest
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import load
from kd_jax.teachers.recording import Recording
from kd_jax.teachers.teacher import Teachers
from kd_jax.training import feature_setup, length, student_setup
from kd_jax.training import optimizer as optimizer_lib
from kd_jax.training.given import NOTHING, Given
from kd_jax.weights import saved_network


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """The parts of one run.

    Attributes:
      config: checked.
      devices: this process's.
      dataset: in host memory.
      student: the network that is trained.
      start: its first variables, where they are not drawn from the seed.
      teachers: None where the config names none.
      recording: of their answers, that is replayed; None: they are asked.
      optimizer: one optax chain.
      total_steps: of the run.
      resident: whether the images lie on the devices, or are streamed to them.
      given: objects from Python that the config cannot name.
      features: that the student matches besides; None: none.
    """

    config: ConfigDict
    devices: list[jax.Device]
    dataset: dataset_lib.DataSet
    student: models.Network
    start: models.Variables | None
    teachers: Teachers | None
    recording: Recording | None
    optimizer: optax.GradientTransformation
    total_steps: int
    resident: bool
    given: Given
    features: Features | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their labels; None where nobody knows them."""
        return self.given.class_names or self.dataset.class_names

    @property
    def is_changed_by_devices(self) -> bool:
        """Whether another number of devices would be another training."""
        if self.student.is_changed_by_devices:
            return True
        shapes = models.abstract_variables(self.student, self.dataset.image_shape)
        return not self.config.batch_norm.sync and bool(jax.tree.leaves(shapes["batch_stats"]))

    @property
    def start_digest(self) -> str | None:
        """Of the weights that the student starts from, and of their normalisation; None of none."""
        if self.start is None:
            return None
        normalisation = repr((self.student.mean, self.student.std))
        digest = saved_network.digest_of(self.start)
        return hashlib.sha256((digest + normalisation).encode()).hexdigest()

    @property
    def code(self) -> dict[str, str]:
        """Name and source digest of each part of the run that is code of its user."""
        parts = {"loss": self.given.loss, "student": self.given.student}
        return {
            part: source_digest.named(thing) for part, thing in parts.items() if thing is not None
        }

    @functools.cached_property
    def _learning_rates(self) -> np.ndarray:
        return length.learning_rates(self.config, len(self.dataset.train))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate that the update to this step, from 1, was made with."""
        return float(f"{self._learning_rates[step - 1]:.6g}")  # float32 has no more digits

    @property
    def quantize_from(self) -> int:
        """Number of updates before the student is quantised; all of them if it never is."""
        return length.quantize_from(self.config, self.total_steps)

    @property
    def validations_at_the_end(self) -> float:
        """What is measured after the last step, in validations: test and validation."""
        return 1.0 + len(self.dataset.test) / max(1, len(self.dataset.val))

    @property
    def quantizes(self) -> bool:
        """Whether the student is quantised in the end."""
        return self.quantize_from < self.total_steps

    def is_quantized(self, step: int) -> bool:
        """Tell whether the update after `step` others is made with int8's numbers."""
        return step >= self.quantize_from

    def spec(self, *, quantized: bool) -> StudentSpec:
        """Return the student and how it is trained, as a step takes them."""
        student = dataclasses.replace(self.student, quantized=quantized)
        return StudentSpec(self.config, student, self.optimizer, self.given.loss, self.features)

    def feeder(self, calls: Iterable[range]) -> prefetch.Feeder:
        """Return what gives the batch of each call in turn."""
        config, examples = self.config, len(self.dataset.train)
        return prefetch.Feeder(
            lambda step: sampler.batch_at(
                step, config.batch_size, examples, config.seed, config.mixup.partner
            ),
            None if self.resident else self.dataset.train.images,
            self.devices,
            partners=config.mixup.kind != "none",
            parts=config.accumulate,
            calls=calls,
        )

    def batch_of(self, step: int) -> Any:
        """Return the batch of one step, `[devices, n, ...]`: a `Batch` or a `Streamed`."""
        feeder = self.feeder([range(step, step + 1)])
        try:
            return feeder.next()
        finally:
            feeder.close()

    def initial_state(self) -> state_lib.TrainState:
        """Return the state before the first step, on one device."""
        seed = student_setup.init_seed(self.config)
        variables = self.start or self.student.init(seed, self.dataset.image_shape)
        if self.quantizes:
            variables = self.student.with_ranges(variables, self.dataset.image_shape)
        return state_lib.init_state(self.config, variables, self.optimizer, self.features)


def prepare(config: ConfigDict) -> None:
    """Check a config, and set what JAX must know before it looks for devices.

    Raises:
      UserError: a value is not as it must be.
    """
    checks.check(config)
    devices_lib.prepare(config.num_devices, config.batch_size // config.accumulate)


def build(config: ConfigDict, like: RunSetup | None = None, given: Given = NOTHING) -> RunSetup:
    """Check a config and build what it describes.

    Args:
      config: of the experiment.
      like: another with the same data, teachers and devices, which are then taken from it.
      given: objects from Python that the config cannot name.

    Raises:
      UserError: a value, the weights, the devices or the data are not as they must be.
    """
    prepare(config)
    given.check(config)
    name = tfds_source.base_name(config.dataset.name)
    if like is None:
        teachers, recorded = _load_teachers(config, name, given)
    else:
        teachers, recorded = like.teachers, like.recording
    start = student_setup.read_start(config, name)
    devices = devices_lib.select(config.num_devices, config.batch_size, config.accumulate)
    dataset = (
        like.dataset if like else dataset_lib.load(config.dataset, given.source, given.validation)
    )
    class_names = given.class_names or dataset.class_names
    _check_labels(config, dataset, has_teachers=teachers is not None)
    _check_names(class_names, dataset)
    if teachers and not like and config.teacher.weights:
        teachers = load.fit(teachers, config.teacher, dataset, class_names)
    if start:
        start = student_setup.fit_start(config, start, dataset, class_names)
    student = student_setup.build(config, dataset, start[0] if start else None, given)
    models.check_norms(student, dataset.image_shape, processes.count() * len(devices))
    examples, batch_size = len(dataset.train), config.batch_size
    total_steps = length.total_steps(config, examples)
    student_setup.check_quantized(
        config, student, dataset.image_shape, total_steps, has_start=start is not None
    )
    lengths = total_steps, length.warmup_steps(config, examples), examples / batch_size
    optimizer = optimizer_lib.build(config, *lengths)
    features = None
    if config.distill.features:
        features = feature_setup.build(config, teachers, student, dataset.image_shape, lengths)
    return RunSetup(
        config=config,
        devices=devices,
        dataset=dataset,
        student=student,
        start=start[1] if start else None,
        teachers=teachers,
        recording=recorded,
        optimizer=optimizer,
        total_steps=total_steps,
        resident=prefetch.is_resident(config.dataset, dataset.train.images.nbytes),
        given=given,
        features=features,
    )


def _load_teachers(
    config: ConfigDict, dataset: str, given: Given
) -> tuple[Teachers | None, Recording | None]:
    """Return the teachers that a config names, and the recording that it replays."""
    teachers, recorded = None, None
    if config.teacher.replay:
        recorded = Recording(config.teacher.replay)
        teachers = recorded.teachers(config.teacher)
    if config.teacher.weights:
        teachers = load.load(config.teacher, dataset, given.teachers)
    return teachers, recorded


def _check_labels(config: ConfigDict, dataset: dataset_lib.DataSet, *, has_teachers: bool) -> None:
    """Raise `UserError` if labels are missing that something reads."""
    if config_lib.reads_labels(config) and dataset.train.known_labels is None:
        raise UserError(
            f"config.distill.label_weight is {config.distill.label_weight} with "
            f"config.distill.loss={config.distill.loss}, which read labels, and not all images to "
            "train on have one: give labels, or take label_weight=0 and a loss without them"
        )
    for name in ("val", "test"):
        if not has_teachers and dataset.split(name).known_labels is None:
            raise UserError(
                f"the {name} split has no labels and there is no teacher: expected labels, or a "
                "teacher to agree with"
            )


def _check_names(class_names: tuple[str, ...] | None, dataset: dataset_lib.DataSet) -> None:
    """Raise `UserError` unless there is one name for each class, or none at all."""
    if class_names is None:
        return
    if not len(set(class_names)) == len(class_names) == dataset.num_classes:
        raise UserError(
            f"class_names= has {len(class_names)} names, {len(set(class_names))} of them "
            f"different: expected one for each of the {dataset.num_classes} classes of "
            f"{dataset.name}"
        )
