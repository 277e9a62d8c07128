"""Small things to train: a step on random images, and whole runs on the embedded ones."""

import jax
import numpy as np

from kd_jax import batches, ensemble, models, optim, parallel, steps
from kd_jax.config import default_config

IMAGES = np.random.default_rng(5).integers(0, 256, (200, 32, 32, 3), np.uint8)
LABELS = np.random.default_rng(6).integers(0, 10, 200).astype(np.int32)


def small_config(**options):
    config = default_config()
    config.student.arch = "resnet8"
    config.batch_size = 32
    config.seed = 3
    config.log_every_steps = 1
    config.update_from_flattened_dict(options)
    return config


def set_up(config, axis_name=parallel.AXIS):
    axis_name = axis_name if config.batch_norm.sync else None
    mean, std = (0.5,) * 3, (0.25,) * 3
    rate = config.student.dropout
    student = models.build("resnet8", 10, mean, std, axis_name=axis_name, dropout_rate=rate)
    teacher = models.build("resnet8", 10, (0.4,) * 3, std)
    optimizer = optim.build(config, total_steps=100, warmup_steps=5)
    state = steps.init_state(config, student.init(config.seed, (32, 32, 3)), optimizer)
    alone = ensemble.Ensemble((teacher,), (1.0,), "probabilities")
    step = steps.make_train_step(config, student, alone, optimizer)
    teacher_variables = teacher.init(9, (32, 32, 3))
    teacher_variables["params"]["fc"]["kernel"] *= 100.0  # or an untrained teacher knows nothing
    return step, state, steps.Constants(IMAGES, None, (teacher_variables,))


def run(config, num_devices, num_steps=20, labels=None, teacher_logits=None):
    """Train a small student of a small teacher; return the last state, and each step's metrics."""
    devices = jax.devices()[:num_devices]
    step, state, constants = set_up(config)
    constants = constants._replace(labels=labels, teacher_logits=teacher_logits)
    train_step = parallel.pmap(step, devices, (False, False, True), donate_argnums=0)
    state, constants = parallel.replicate((state, constants), devices)
    recorded = []
    for i in range(num_steps):
        batch = batches.batch_at(
            i, config.batch_size, len(IMAGES), seed=3, partner=config.mixup.partner
        )
        state, metrics = train_step(state, constants, parallel.shard(batch, devices))
        recorded.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), recorded


class StopAfter:
    """A stop request that comes after so many steps; or something else happens then."""

    def __init__(self, steps, happens=lambda: "SIGTERM"):
        self.steps, self.happens = steps, happens

    @property
    def requested(self):
        self.steps -= 1
        return self.happens() if self.steps == 0 else None

    def has_unsaved_work(self, yes):
        pass


def digits_config(num_devices):
    """Return a run of 30 steps from labels, on the embedded images."""
    assert len(jax.devices()) == 4  # and JAX runs, so that the config cannot change them
    config = default_config()
    config.dataset.name = "digits"
    config.dataset.val_examples = 144
    config.student.arch = "resnet8"
    config.distill.label_weight = 1.0
    config.batch_size = 32
    config.total_steps = 30
    config.log_every_steps = 1
    config.eval_every_epochs = 1000.0
    config.num_devices = num_devices
    return config
