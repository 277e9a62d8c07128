"""From a config to the parts of a run: data, devices, networks, optimiser.

Everything that can be wrong with the input is found here, cheapest first, before anything is
compiled or written.
"""

from __future__ import annotations

import dataclasses

import jax
import optax
from ml_collections import ConfigDict

from kd_jax import batches, data, models, optim, parallel, steps, teachers
from kd_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one run.

    Attributes:
      config: checked.
      devices: this process's.
      dataset: in host memory.
      student: the network that is trained.
      teacher: None where the config names none.
      optimizer: one optax chain.
      total_steps: of the run.
    """

    config: ConfigDict
    devices: list[jax.Device]
    dataset: data.DataSet
    student: models.Network
    teacher: teachers.Teacher | None
    optimizer: optax.GradientTransformation
    total_steps: int

    def initial_state(self) -> steps.TrainState:
        """Return the state before the first step, on one device."""
        image_shape = self.dataset.image_shape
        return steps.init_state(self.config, self.student, self.optimizer, image_shape)


def build(config: ConfigDict) -> Experiment:
    """Check a config and build what it describes.

    Raises:
      UserError: a value, the teacher's weights, the devices or the data are not as they must be.
    """
    config_lib.check(config)
    parallel.prepare(config.num_devices, config.batch_size)
    teacher = None
    if config.teacher.weights:
        teacher = teachers.load(config.teacher, config.dataset.name)
    devices = parallel.select(config.num_devices, config.batch_size)
    dataset = data.load(config.dataset)
    student = models.build(
        config.student.arch,
        dataset.num_classes,
        dataset.mean,
        dataset.std,
        axis_name=parallel.AXIS,
        dropout_rate=config.student.dropout,
    )
    examples, batch_size = len(dataset.train), config.batch_size
    total_steps = config.total_steps or batches.steps_in(config.total_epochs, batch_size, examples)
    warmup_steps = round(config.warmup_epochs * examples / batch_size)
    optimizer = optim.build(config, total_steps, warmup_steps)
    return Experiment(config, devices, dataset, student, teacher, optimizer, total_steps)
