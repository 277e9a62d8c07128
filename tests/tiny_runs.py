"""Small things to train: a step on random images, and whole runs on the embedded ones."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import config as config_lib
from kd_jax import models
from kd_jax.config import default_config
from kd_jax.data import sampler
from kd_jax.distillation import ensemble
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.kernels import lowering as lowering_lib
from kd_jax.models import layers, quantize, resnet
from kd_jax.models.norm import batch_norm
from kd_jax.runtime import devices as devices_lib
from kd_jax.training import optimizer as optimizer_lib

IMAGES = np.random.default_rng(5).integers(0, 256, (200, 32, 32, 3), np.uint8)
LABELS = np.random.default_rng(6).integers(0, 10, 200).astype(np.int32)


class Tiny(nn.Module):
    """The least of a ResNet that has every kind of its layers, shortcut and dropout included."""

    num_classes: int = 10
    axis_name: str | None = None
    dtype: Any = None
    dropout_rate: float = 0.0
    batch_norm_momentum: float = 0.9
    kernel_std = staticmethod(layers.kernel_std)

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        norm = batch_norm(train, self.axis_name, self.dtype)
        x = norm(name="bn1", activation="relu")(
            layers.Conv(8, 3, 2, dtype=self.dtype, name="conv1")(x)
        )
        x = resnet.BasicBlock(16, 2, norm, self.dtype, name="layer1.0")(x)
        x = quantize.result(self, "mean", jnp.mean(x, axis=(1, 2)))
        x = layers.dropout(x, self.dropout_rate, dropout_keys)
        return layers.Dense(self.num_classes, dtype=self.dtype, name="fc")(x)


def tiny(mean=(0.5,) * 3, std=(0.25,) * 3, **options):
    """Return a network of ten classes that is not in the zoo."""
    return models.Network("tiny", Tiny(**options), mean, std)


def small_config(**options):
    config = default_config()
    config.student.arch = "resnet8"
    config.batch_size = 32
    config.seed = 3
    config.log_every_steps = 1
    config.update_from_flattened_dict(options)
    return config


def set_up(config, axis_name=devices_lib.AXIS):
    axis_name = axis_name if config.batch_norm.sync else None
    student = tiny(axis_name=axis_name, dropout_rate=config.student.dropout)
    teacher = tiny((0.4,) * 3)
    optimizer = optimizer_lib.build(config, total_steps=100, warmup_steps=5)
    state = state_lib.init_state(config, student.init(config.seed, (32, 32, 3)), optimizer)
    alone = ensemble.Ensemble((teacher,), (1.0,), "probabilities")
    step = step_lib.make_train_step(config, student, alone, optimizer)
    teacher_variables = teacher.init(9, (32, 32, 3))
    teacher_variables["params"]["fc"]["kernel"] *= 100.0  # or an untrained teacher knows nothing
    return step, state, state_lib.Constants(IMAGES, None, (teacher_variables,))


@functools.lru_cache(maxsize=8)
def _train_step(text, num_devices, lowering):
    """Return the step over so many devices: traced and compiled once for all tests of a file."""
    assert lowering == lowering_lib.current()
    step, _, _ = set_up(config_lib.from_json(text))
    devices = jax.devices()[:num_devices]
    return devices_lib.pmap(step, devices, (False, False, True), donate_argnums=0)


def run(config, num_devices, num_steps=20, labels=None, teacher_logits=None):
    """Train a small student of a small teacher; return the last state, and each step's metrics."""
    devices = jax.devices()[:num_devices]
    _, state, constants = set_up(config)
    constants = constants._replace(labels=labels, teacher_logits=teacher_logits)
    train_step = _train_step(config_lib.to_json(config), num_devices, lowering_lib.current())
    state, constants = devices_lib.replicate((state, constants), devices)
    recorded = []
    for i in range(num_steps):
        batch = sampler.batch_at(
            i, config.batch_size, len(IMAGES), seed=3, partner=config.mixup.partner
        )
        state, metrics = train_step(
            state, constants, devices_lib.shard(batch, devices, config.accumulate)
        )
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
    config.student.arch = "tiny"  # in the zoo where this function is used, see conftest.py
    config.distill.label_weight = 1.0
    config.batch_size = 32
    config.total_steps = 30
    config.log_every_steps = 1
    config.eval_every_epochs = 1000.0
    config.num_devices = num_devices
    return config
