"""Modules of the user's own: initialised by themselves, their norms kept rightly, or refused."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import models
from kd_jax.data import sampler
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.models import layers, norm
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import UserError
from kd_jax.training import student_setup
from kd_jax.weights import name_maps, torch_import
from tiny_runs import IMAGES, LABELS, small_config

SHAPE = (32, 32, 3)
MEAN, STD = (0.5,) * 3, (0.25,) * 3


class Mine(nn.Module):
    """Plain Flax: a norm that averages by itself, initialisers of its own, and a free parameter."""

    num_classes: int
    axis_name: str | None = None
    dtype: jnp.dtype | None = None
    dropout_rate: float = 0.0
    momentum: float = 0.9
    synchronised: bool = True

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = nn.Conv(4, (3, 3), strides=4, kernel_init=nn.initializers.constant(0.25))(x)
        axis = self.axis_name if self.synchronised else None
        x = nn.BatchNorm(not train, momentum=self.momentum, axis_name=axis, name="bn")(x)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), x.shape[1:])
        return nn.Dense(self.num_classes, name="head")(nn.relu(x).mean((1, 2)))


class Mixed(Mine):
    """One norm of Flax, and one of kd_jax, which `Network` averages."""

    batch_norm_momentum: float = 0.5

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = layers.Conv(4, 3, 4)(x)
        x = nn.BatchNorm(not train, momentum=self.momentum, name="bn")(x)
        x = norm.batch_norm(train, self.axis_name, None)(name="ours", activation="relu")(x)
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def network(module):
    return models.Network("mine", module, MEAN, STD)


def trained(student, num_devices, num_steps=6):
    """Train by the project's step; return the first and the last state, and the batches."""
    config = small_config(**{"distill.label_weight": 1.0, "mixup.kind": "none",
                             "augment.flip": False, "augment.crop_pad_px": 0})  # fmt: skip
    devices = jax.devices()[:num_devices]
    optimizer = optax.sgd(0.1)
    first = state_lib.init_state(config, student.init(3, SHAPE), optimizer)
    step = step_lib.make_train_step(config, student, None, optimizer)
    train_step = devices_lib.pmap(step, devices, (False, False, True))
    state, given = first, []
    for i in range(num_steps):
        batch = sampler.batch_at(i, config.batch_size, len(IMAGES), seed=3)
        given.append(np.asarray(batch.example))
        state, _ = train_step(
            state, state_lib.Constants(IMAGES, LABELS), devices_lib.shard(batch, devices)
        )
    return jax.device_get(first), jax.device_get(state), given


def test_a_plain_batch_norm_ends_with_the_statistics_of_a_plain_flax_loop():
    module = Mine(10, momentum=0.9)
    first, last, given = trained(network(module), 1)
    params, running = first.params, first.batch_stats

    @jax.jit
    def plain(params, running, x, labels):
        def loss_of(params):
            variables = {"params": params, "batch_stats": running}
            logits, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, changed["batch_stats"]

        grads, running = jax.grad(loss_of, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), running

    for examples in given:
        x = (IMAGES[examples] / np.float32(255) - 0.5) / 0.25
        params, running = plain(params, running, x, LABELS[examples])
    for ours, flax in ((last.params, params), (last.batch_stats, running)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, flax
        )


def test_each_norm_is_averaged_once_whosever_it_is():
    mixed = network(Mixed(10))
    variables = mixed.init(0, SHAPE)
    pixels = np.random.default_rng(0).random((8, *SHAPE), np.float32)
    logits, statistics = jax.jit(mixed.train_logits)(variables, pixels, None)
    assert set(statistics.of_batch) == {"ours"}
    assert set(statistics.running) == {"bn"}
    averaged = mixed.average_statistics(variables["batch_stats"], statistics, 10**6)
    plain, changed = mixed.module.apply(
        variables, mixed.normalise(pixels), train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)
    expected = changed["batch_stats"]
    np.testing.assert_allclose(averaged["bn"]["var"], expected["bn"]["var"], rtol=1e-5)
    half = 0.5 + 0.5 * expected["ours"]["var"]  # the batch's own there, from 1 on
    np.testing.assert_allclose(averaged["ours"]["var"], half, rtol=1e-4)


def test_the_number_of_devices_does_not_change_a_plain_batch_norm():
    student = network(Mine(10, axis_name=devices_lib.AXIS))
    (_, one, _), (_, two, _) = trained(student, 1), trained(student, 2)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            one.batch_stats["bn"][name], two.batch_stats["bn"][name], rtol=1e-4, atol=1e-5
        )


def test_a_norm_of_each_devices_own_is_refused_on_several():
    alone = network(Mine(10, axis_name=devices_lib.AXIS, synchronised=False))
    models.check_norms(alone, SHAPE, 1)
    models.check_norms(network(Mine(10)), SHAPE, 2)  # config.batch_norm.sync=False
    models.check_norms(network(Mine(10, axis_name=devices_lib.AXIS)), SHAPE, 2)
    with pytest.raises(UserError, match="mine does not pass its axis_name to the norm bn, so each"):
        models.check_norms(alone, SHAPE, 2)


def test_a_frozen_norm_that_is_not_kd_jaxs_is_refused():
    for pattern, path in (("ours", "ours"), ("bn", "bn")):
        mixed = network(Mixed(10))
        kept = student_setup.frozen_norms(pattern, mixed, SHAPE)
        assert kept == {path}
        mixed = dataclasses.replace(mixed, kept_norms=kept)
        if path == "ours":
            models.check_norms(mixed, SHAPE, 1)
        else:
            with pytest.raises(UserError, match="freezes the norm bn of mine, which is not of kd"):
                models.check_norms(mixed, SHAPE, 1)


def test_a_module_initialises_itself():
    module = Mine(10)
    ours = network(module).init(7, SHAPE)
    plain = jax.jit(module.init)(jax.random.key(7), jnp.zeros((1, *SHAPE)))
    jax.tree.map(np.testing.assert_array_equal, ours, dict(plain))
    assert all(
        isinstance(leaf, np.ndarray) and leaf.flags.writeable for leaf in jax.tree.leaves(ours)
    )
    assert (ours["params"]["Conv_0"]["kernel"] == 0.25).all()
    assert ours["params"]["pos_embedding"].std() == pytest.approx(0.02, rel=0.2)
    assert (
        network(module).init(8, SHAPE)["params"]["pos_embedding"][0, 0, 0]
        != (ours["params"]["pos_embedding"][0, 0, 0])
    )


def test_a_convolution_of_kd_jax_has_its_first_values_in_any_module():
    kernel = network(Mixed(10)).init(0, SHAPE)["params"]["Conv_0"]["kernel"]
    assert kernel.std() == pytest.approx(layers.kernel_std((), kernel.shape), rel=0.2)


def test_leaves_of_any_name_go_through_pytorchs_layout_and_back():
    variables = network(Mine(10)).init(0, SHAPE)
    state_dict = torch_import.to_state_dict(variables, name_maps.PYTORCH)
    assert "pos_embedding" in state_dict
    again = torch_import.from_state_dict(network(Mine(10)), state_dict, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


class DrawnHere(Mine):
    """Asks for drawn first values, with a parameter that nobody can draw."""

    kernel_std = staticmethod(layers.kernel_std)


class Counting(Mine):
    """Keeps a collection that no training carries on."""

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        self.variable("counts", "images", jnp.zeros, ())
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Halved(Mine):
    """Keeps its parameters in bfloat16."""

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        return nn.Dense(self.num_classes, param_dtype=jnp.bfloat16)(x.mean((1, 2)))


class Twice(Mine):
    """Makes kd_jax's norm by hand, with a momentum."""

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = norm.BatchNorm(train=train, momentum=0.9, name="bn")(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class NoMomentum(Mine):
    """Has norms of kd_jax, and does not say how they are averaged."""

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = norm.batch_norm(train, self.axis_name, None)(name="bn")(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Strided(Mine):
    """Leaves nothing of a small image, which Flax's initialisers divide by."""

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = nn.max_pool(x, (64, 64))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (DrawnHere, "has a parameter pos_embedding: expected no kernel_std"),
        (Counting, "keeps variables in counts, which training would not carry on"),
        (Halved, "has params/Dense_0/bias in bfloat16: expected parameters .* in float32"),
        (Twice, "makes its norm bn with momentum=0.9, and .* averaged twice"),
        (NoMomentum, r"has norms of kd_jax \(bn\) and no batch_norm_momentum"),
        (Strided, "leaves nothing of an image of 32 x 32 pixels"),
    ],
)
def test_what_would_be_wrong_without_a_word_is_refused(module, says):
    with pytest.raises(UserError, match=f"^mine .*{says}"):
        network(module(10)).init(0, SHAPE)
