"""Train on 1, 2, 4 and 8 devices and print the losses as JSON; started by test_devices.py.

A process of its own, because the tests' has four devices. An epoch of 5,120 images of CIFAR-100
where TFDS_DATA_DIR has them, else of random ones; ResNet8 from a ResNet8 that was never trained.
"""

import json
import os
import sys

import jax
import numpy as np

from kd_jax import models
from kd_jax.config import default_config
from kd_jax.data import catalog, dataset, sampler
from kd_jax.distillation import ensemble
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.runtime import devices as devices_lib
from kd_jax.training import optimizer as optimizer_lib

EXAMPLES, BATCH_SIZE, CLASSES, SHAPE = 5120, 256, 100, (32, 32, 3)


def images(options):
    if os.environ.get("TFDS_DATA_DIR"):
        return dataset.load(options).train.images[:EXAMPLES]
    return np.random.default_rng(0).integers(0, 256, (EXAMPLES, *SHAPE), np.uint8)


def main():
    config = default_config()
    assert config.mixup.kind == "batch"
    assert config.batch_norm.sync
    config.batch_size = BATCH_SIZE
    config.log_every_steps = 1
    facts = catalog.facts("cifar100")
    normalisation = facts.mean, facts.std
    student = models.build("resnet8", CLASSES, *normalisation, axis_name=devices_lib.AXIS)
    teacher = models.build("resnet8", CLASSES, *normalisation)
    teacher_variables = teacher.init(9, SHAPE)
    teacher_variables["params"]["fc"]["kernel"] *= 100.0  # or it would know nothing
    num_steps = sampler.steps_in(1, BATCH_SIZE, EXAMPLES)
    optimizer = optimizer_lib.build(config, num_steps, 1)
    group = ensemble.Ensemble((teacher,), (1.0,), "probabilities")
    step = step_lib.make_train_step(config, student, group, optimizer)
    start = state_lib.init_state(config, student.init(0, SHAPE), optimizer)
    constants = state_lib.Constants(images(config.dataset), None, (teacher_variables,))
    for number in (1, 2, 4, 8):
        devices = jax.devices()[:number]
        assert len(devices) == number
        train_step = devices_lib.pmap(step, devices, (False, False, True), donate_argnums=0)
        state, placed = devices_lib.replicate((jax.device_get(start), constants), devices)
        losses = []
        for i in range(num_steps):
            batch = sampler.batch_at(i, BATCH_SIZE, EXAMPLES, config.seed)
            state, metrics = train_step(state, placed, devices_lib.shard(batch, devices))
            losses.append(float(metrics["loss"]))
        params = np.asarray(jax.flatten_util.ravel_pytree(state.params)[0], np.float64)
        print(json.dumps({"devices": number, "losses": losses, "norm": np.linalg.norm(params)}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
