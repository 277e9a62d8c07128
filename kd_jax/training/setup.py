"""From a config to the parts of a run: data, devices, networks, optimiser.

Everything that can be wrong with the input is found here, cheapest first, before anything is
compiled or written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re

import jax
import optax
from ml_collections import ConfigDict

from kd_jax import models
from kd_jax.config import checks
from kd_jax.data import class_names, prefetch, sampler, tfds_source
from kd_jax.data import dataset as dataset_lib
from kd_jax.distill import state as state_lib
from kd_jax.distill.student import StudentSpec
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import processes
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import heads, load
from kd_jax.training import optimizer as optimizer_lib
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
      optimizer: one optax chain.
      total_steps: of the run.
      resident: whether the images lie on the devices, or are streamed to them.
    """

    config: ConfigDict
    devices: list[jax.Device]
    dataset: dataset_lib.DataSet
    student: models.Network
    start: models.Variables | None
    teachers: load.Teachers | None
    optimizer: optax.GradientTransformation
    total_steps: int
    resident: bool

    @property
    def is_changed_by_devices(self) -> bool:
        """Whether another number of devices would be another training."""
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
    def spec(self) -> StudentSpec:
        """The student and how it is trained, as a step takes them."""
        return StudentSpec(self.config, self.student, self.optimizer)

    def initial_state(self) -> state_lib.TrainState:
        """Return the state before the first step, on one device."""
        chosen = self.config.student.init_seed
        seed = self.config.seed if chosen is None else chosen
        variables = self.start or self.student.init(seed, self.dataset.image_shape)
        return state_lib.init_state(self.config, variables, self.optimizer)


def prepare(config: ConfigDict) -> None:
    """Check a config, and set what JAX must know before it looks for devices.

    Raises:
      UserError: a value is not as it must be.
    """
    checks.check(config)
    devices_lib.prepare(config.num_devices, config.batch_size // config.accumulate)


def build(config: ConfigDict, like: RunSetup | None = None) -> RunSetup:
    """Check a config and build what it describes.

    Args:
      config: of the experiment.
      like: another with the same data, teachers and devices, which are then taken from it.

    Raises:
      UserError: a value, the weights, the devices or the data are not as they must be.
    """
    prepare(config)
    teachers, start = like.teachers if like else None, None
    name = tfds_source.base_name(config.dataset.name)
    if config.teacher.weights and not like:
        teachers = load.load(config.teacher, name)
    options = config.student
    if options.weights:
        start = load.read(options.weights, options.arch, name, "config.student")
    devices = devices_lib.select(config.num_devices, config.batch_size, config.accumulate)
    dataset = like.dataset if like else dataset_lib.load(config.dataset)
    names = class_names.known(config.dataset, dataset.num_classes)
    if teachers and not like:
        teachers = load.fit(teachers, config.teacher, dataset, names)
    if start:
        load.check_images(start[0], dataset.name, dataset.image_shape)
        start = heads.fit(*start, names, dataset.num_classes, dataset.name)
    mean, std = (start[0].mean, start[0].std) if start else (dataset.mean, dataset.std)
    if options.normalisation == "half":
        mean, std = load.HALF, load.HALF
    student = models.build(
        options.arch,
        dataset.num_classes,
        mean,
        std,
        axis_name=devices_lib.AXIS if config.batch_norm.sync else None,
        dropout_rate=options.dropout,
        dtype=options.dtype,
    )
    _check_freeze(options.freeze, student, dataset.image_shape)
    kept = frozen_norms(options.freeze, student, dataset.image_shape)
    student = dataclasses.replace(student, kept_norms=kept)
    models.check_norms(student, dataset.image_shape, processes.count() * len(devices))
    examples, batch_size = len(dataset.train), config.batch_size
    total_steps = config.total_steps or sampler.steps_in(config.total_epochs, batch_size, examples)
    warmup_steps = round(config.warmup_epochs * examples / batch_size)
    optimizer = optimizer_lib.build(config, total_steps, warmup_steps, examples / batch_size)
    return RunSetup(
        config=config,
        devices=devices,
        dataset=dataset,
        student=student,
        start=start[1] if start else None,
        teachers=teachers,
        optimizer=optimizer,
        total_steps=total_steps,
        resident=prefetch.is_resident(config.dataset, dataset.train.images.nbytes),
    )


def frozen_norms(
    pattern: str, student: models.Network, image_shape: tuple[int, int, int]
) -> frozenset[str]:
    """Return the paths of the batch norms that `config.student.freeze` freezes.

    Those all of whose parameters it finds. Their running statistics belong to the frozen weights:
    they stay, and are what the norm goes by, in training too.
    """
    if not pattern:
        return frozenset()
    shapes = models.flat_shapes(student, image_shape)
    params = {path[1:] for path in shapes if path[0] == "params"}
    free = {path[:-1] for path in params if not re.search(pattern, "/".join(path))}
    norms = {path[1:-1] for path in shapes if path[0] == "batch_stats"}
    return frozenset("/".join(norm) for norm in norms & {path[:-1] for path in params} - free)


def _check_freeze(pattern: str, student: models.Network, image_shape: tuple[int, int, int]) -> None:
    """Raise `UserError` if `config.student.freeze` finds no parameter, or all of them."""
    names = ["/".join(p[1:]) for p in models.flat_shapes(student, image_shape) if p[0] == "params"]
    found = sum(bool(re.search(pattern, name)) for name in names)
    if pattern and not 0 < found < len(names):
        raise UserError(
            f"config.student.freeze is {pattern!r}, which finds {found} of the {len(names)} "
            f"parameters of {student.arch}: expected some and not all, such as {names[0]}"
        )
