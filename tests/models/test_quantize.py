"""Fake quantisation: its numbers are those of integers, its gradient goes straight through."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import patched_zoo
from kd_jax import models
from kd_jax.kernels import jaxprs, lowering, native
from kd_jax.models import layers, quantize
from kd_jax.models.norm import batch_norm
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import UserError
from tiny_runs import tiny

SHAPE = (32, 32, 3)
RNG = np.random.default_rng(0)
RANGES = {"both signs": (-1.3, 2.9), "relu": (0.0, 5.1), "relu6": (0.0, 6.0), "no zero": (1.0, 2.0)}


def rounded(x, ends):
    with quantize.active():
        return np.asarray(quantize.within(jnp.asarray(x, jnp.float32), ends))


def as_uint8(x, ends):
    """Round by integers, as the specification has it: `scale * (q - zero_point)`."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = (high - low) / 255
    zero_point = int(np.rint(-low / scale))
    assert 0 <= zero_point <= 255
    integers = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8)
    return scale * (integers.astype(np.int32) - zero_point)


@pytest.mark.parametrize("name", RANGES)
def test_results_are_those_of_integers(name):
    ends = RANGES[name]
    x = np.concatenate([RNG.uniform(-3, 7, 5000), [0.0]])
    found = rounded(x, ends)
    np.testing.assert_allclose(found, as_uint8(x, ends), atol=1e-5)
    assert len(np.unique(found)) <= 256
    assert found[-1] == 0.0  # or padding would not be zero


def test_weights_are_those_of_integers_with_a_step_for_each_output():
    kernel = RNG.normal(size=(3, 3, 5, 7)) * np.linspace(0.01, 4, 7)
    kernel[..., 2] = 0.0
    with quantize.active():
        found = np.asarray(quantize.weights(jnp.asarray(kernel, jnp.float32)))
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    scale = np.where(largest > 0, largest, 1) / 127
    integers = np.rint(kernel / scale).astype(np.int8)
    assert integers.min() >= -127
    np.testing.assert_allclose(found, integers * scale, atol=1e-6)
    assert set(np.abs(integers[..., 0]).flat) >= {127}


def test_a_factor_of_an_output_changes_the_step_and_not_the_integers():
    """So weights are rounded before batch norm is multiplied into them, and none is folded."""
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 5, 7)), jnp.float32)
    factor = jnp.asarray(RNG.uniform(-3, 3, 7), jnp.float32)
    with quantize.active():
        folded, apart = quantize.weights(kernel * factor), quantize.weights(kernel) * factor
    np.testing.assert_allclose(folded, apart, rtol=1e-4, atol=1e-6)


def test_the_gradient_goes_through_rounding_and_not_through_clipping():
    x = jnp.array([-1.5, -0.5, 0.3, 1.9, 2.5])

    def total(x):
        with quantize.active():
            return jnp.sum(quantize.within(x, (-1.0, 2.0)) * jnp.arange(1.0, 6.0))

    np.testing.assert_array_equal(jax.grad(total)(x), [0, 2, 3, 4, 0])
    kernel = jnp.asarray(RNG.normal(size=(1, 1, 4, 3)), jnp.float32)

    def total_of_weights(kernel):
        with quantize.active():
            return jnp.sum(quantize.weights(kernel) * jnp.arange(1.0, 4.0))

    expected = jnp.broadcast_to(jnp.arange(1.0, 4.0), kernel.shape)
    np.testing.assert_array_equal(jax.grad(total_of_weights)(kernel), expected)


def test_nothing_is_rounded_outside():
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    assert quantize.weights(x) is x
    assert quantize.within(x, (0.0, 1.0)) is x
    assert quantize.result(nn.Module(), "x", x) is x


@functools.cache
def program(num_devices):
    network = dataclasses.replace(tiny(axis_name=devices_lib.AXIS), quantized=True)

    def step(variables, pixels):
        logits, statistics = network.train_logits(variables, pixels, None)
        running = network.average_statistics(variables["batch_stats"], statistics, None)
        return logits, {"params": variables["params"], "batch_stats": running}

    return jax.pmap(step, devices_lib.AXIS, in_axes=(None, 0), devices=jax.devices()[:num_devices])


def after_two_batches(num_devices):
    network = tiny()
    variables = network.with_ranges(network.init(0, SHAPE), SHAPE)
    pixels = np.random.default_rng(1).random((2, num_devices, 8 // num_devices, *SHAPE), np.float32)
    for batch in pixels.reshape(2, 8, *SHAPE):
        parts = batch.reshape(num_devices, -1, *SHAPE)
        _, new = program(num_devices)(variables, parts)
        for leaf in jax.tree.leaves(new):
            assert np.array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))  # on all devices
        variables = jax.tree.map(lambda leaf: np.asarray(leaf[0]), new)
    return variables


def test_ranges_do_not_depend_on_the_number_of_devices():
    first = quantize.ranges(after_two_batches(1))
    assert all(low < high for low, high in first.values())
    for num_devices in (2, 4):
        for path, leaf in quantize.ranges(after_two_batches(num_devices)).items():
            np.testing.assert_allclose(leaf, first[path], atol=1e-6, err_msg=str(path))


def test_the_first_batch_sets_a_range_and_the_others_move_it():
    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return quantize.result(self, "x", x)

    def batch(variables, x):
        with quantize.active(train=True):
            return One().apply(variables, jnp.asarray(x), mutable=["batch_stats"])

    with quantize.active():
        variables = One().init(jax.random.key(0), jnp.zeros(3))
    _, variables = batch(variables, [-2.0, 0.0, 1.0])
    np.testing.assert_array_equal(variables["batch_stats"]["x_range"], [-2, 1])
    _, variables = batch(variables, [0.0, 11.0])
    np.testing.assert_allclose(variables["batch_stats"]["x_range"], [-1.98, 1.1], rtol=1e-6)
    with quantize.active():
        found = One().apply(variables, jnp.asarray([-9.0, 9.0]))
    np.testing.assert_allclose(found, [-1.98, 1.1], atol=0.01)


def test_norms_keep_their_statistics_and_nothing_else_does():
    network = tiny()
    before = network.with_ranges(network.init(0, SHAPE), SHAPE)
    after = after_two_batches(1)
    flat = flax.traverse_util.flatten_dict(after["batch_stats"])
    for path, leaf in flax.traverse_util.flatten_dict(before["batch_stats"]).items():
        same = np.array_equal(leaf, flat[path])
        assert same == (path[-1] in ("mean", "var")), path


def test_a_float_network_carries_ranges_and_does_not_read_them():
    network = tiny()
    alone = network.init(0, SHAPE)
    beside = network.with_ranges(alone, SHAPE)
    assert not quantize.have_ranges(beside)
    assert quantize.have_ranges(after_two_batches(1))
    pixels = jnp.asarray(np.random.default_rng(1).random((2, *SHAPE)), jnp.float32)
    logits, statistics = jax.jit(lambda v: network.train_logits(v, pixels, None))(beside)
    expected, _ = jax.jit(lambda v: network.train_logits(v, pixels, None))(alone)
    np.testing.assert_array_equal(logits, expected)
    running = network.average_statistics(beside["batch_stats"], statistics, None)
    assert jax.tree.structure(running) == jax.tree.structure(beside["batch_stats"])
    assert jax.tree.structure(quantize.without_ranges(beside)) == jax.tree.structure(alone)


FAMILIES = [
    "resnet8", "vgg11_bn",
    *(pytest.param(arch, marks=pytest.mark.proof)
      for arch in ("mobilenetv2_x0_5", "mobilenet_v3_small", "mobilenet_v3_small_cifar")),
]  # fmt: skip


@pytest.mark.parametrize("arch", FAMILIES)
def test_int8_holds_every_family_with_batch_norm(arch):
    network = models.build(arch, 10, (0.5,) * 3, (0.25,) * 3)
    network.check_quantized(SHAPE)
    quantized = dataclasses.replace(network, quantized=True)
    floats, ints = (models.flat_shapes(one, SHAPE) for one in (network, quantized))
    more = ints.keys() - floats.keys()
    assert floats.keys() < ints.keys()
    assert all(quantize.is_range(path) and ints[path] == (2,) for path in more)
    norms = {path[:-1] for path in floats if path[-1] == "var"}
    assert {(*norm, "output_range") for norm in norms} <= more


def test_no_compiled_pass_is_in_a_quantised_step():
    network = models.build("mobilenetv2_x0_5", 10, (0.5,) * 3, (0.25,) * 3)
    pixels = jax.ShapeDtypeStruct((32, *SHAPE), jnp.float32)

    def primitives(network):
        variables = network.abstract_variables(SHAPE)
        step = jax.make_jaxpr(lambda v, x: (network.train_logits(v, x, None), network.logits(v, x)))
        with lowering.forced("cpu"):
            program = step(variables, pixels).jaxpr
        return {equation.primitive.name for equation, _ in jaxprs.equations(program)}

    assert "ffi_call" not in primitives(dataclasses.replace(network, quantized=True))
    assert not native.digest() or "ffi_call" in primitives(network)


class Grouped(nn.Module):
    """Has a layer whose numbers are not rounded."""

    num_classes: int
    axis_name: str | None = None
    dtype: Any = None
    dropout_rate: float = 0.0
    batch_norm_momentum: float = 0.9

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = batch_norm(train, None, None)(name="bn")(layers.Conv(8, 3, name="conv")(x))
        x = nn.GroupNorm(4, name="groups")(x)
        return layers.Dense(self.num_classes, name="fc")(jnp.mean(x, (1, 2)))


def test_a_layer_that_int8_does_not_hold_is_refused_by_its_name():
    with patched_zoo(grouped=Grouped):
        network = models.build("grouped", 10, (0.5,) * 3, (0.25,) * 3)
        with pytest.raises(UserError, match="grouped has the layer groups, a GroupNorm, which"):
            network.check_quantized(SHAPE)
