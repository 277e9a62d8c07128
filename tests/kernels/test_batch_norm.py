"""Batch norm in its compiled passes: values, statistics and gradients of Flax's, in float64."""

import dataclasses
import functools

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models
from kd_jax.kernels import activations, lowering, native
from kd_jax.kernels import batch_norm as batch_norm_lib
from kd_jax.models import norm
from kd_jax.training import student_setup

# Maps of the zoo; one pixel; channels that leave half a vector; a row wider than a block.
SHAPES = [
    (4, 32, 32, 16),
    (3, 15, 7, 72),
    (64, 2, 2, 576),
    (7, 1, 1, 8),
    (2, 3, 5, 9000),
    (130, 24),
]
needs_compiler = pytest.mark.skipif(
    native.target(native.NORM_STATISTICS) is None, reason="needs a C++ compiler: set CXX"
)


def problem(shape, seed=0):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = 2 * rng.standard_normal(shape) + rng.standard_normal(channels)
    scale, bias = 1 + 0.3 * rng.standard_normal(channels), rng.standard_normal(channels)
    params = {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
    return x.astype(np.float32), params, rng.standard_normal(shape).astype(np.float32)


def flaxs(x, params, activation):
    """Return what Flax's layer and the activation after it make, and the statistics."""
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=batch_norm_lib.EPSILON)
    y, changed = layer.apply(
        {"params": params, "batch_stats": zeros(x)}, x, mutable=["batch_stats"]
    )
    return activations.ACTIVATIONS[activation](y), changed["batch_stats"]


def ours(x, params, activation, axis=None):
    layer = norm.batch_norm(True, axis, None)(activation=activation)
    assert layer._takes_compiled(x)
    variables = {"params": params, "batch_stats": zeros(x)}
    y, changed = layer.apply(variables, x, mutable=["batch_stats"])
    return y, changed["batch_stats"]


def zeros(x):
    return {name: np.zeros(x.shape[-1], x.dtype) for name in ("mean", "var")}


def slopes(layer, x, params, weight, activation):
    """Return the output, the statistics, and the gradients of x, scale and bias."""

    def loss(x, params):
        y, statistics = layer(x, params, activation)
        return jnp.sum(y * weight), (y, statistics)

    grads, made = jax.grad(loss, (0, 1), has_aux=True)(x, params)
    return jax.tree.leaves((made, grads))


NETWORK = models.build("resnet8", 10, (0.5,) * 3, (0.25,) * 3)


def names(pattern):
    return student_setup.frozen_norms(pattern, NETWORK, (32, 32, 3))


def train(network, variables, pixels):
    return jax.jit(lambda v, x: network.train_logits(v, x, None))(variables, pixels)


def test_a_norm_is_frozen_when_all_its_parameters_are():
    assert names("") == set()
    assert names("kernel") == set()
    assert names("bn1/scale") == set()
    assert names("^bn1/") == {"bn1"}
    assert names("layer1|conv1") == {"layer1.0/bn1", "layer1.0/bn2"}
    assert len(names("^(?!fc)")) == 9


def test_statistics_of_a_frozen_norm_are_used_and_do_not_move():
    """All but the head is frozen: then training sees what evaluation sees."""
    frozen = dataclasses.replace(NETWORK, kept_norms=names("^(?!fc)"))
    variables = NETWORK.init(0, (32, 32, 3))
    rng = np.random.default_rng(1)
    running = jax.tree.map(
        lambda leaf: np.float32(rng.uniform(0.5, 2.0, leaf.shape)), variables["batch_stats"]
    )
    variables = {"params": variables["params"], "batch_stats": running}
    pixels = rng.random((8, 32, 32, 3), np.float32)
    logits, seen = train(frozen, variables, pixels)
    in_eval_mode = jax.jit(NETWORK.logits)(variables, pixels)
    np.testing.assert_allclose(logits, in_eval_mode, rtol=1e-4, atol=1e-4)
    for step in (None, 0, 1000):
        kept = frozen.average_statistics(running, seen, step)
        jax.tree.map(np.testing.assert_array_equal, kept, running)
    some = dataclasses.replace(NETWORK, kept_norms=names("layer1|conv1"))
    _, seen = train(some, variables, pixels)
    after = some.average_statistics(running, seen, 0)
    for name in ("bn1", "layer2.0"):
        old, new = jax.tree.leaves(running[name]), jax.tree.leaves(after[name])
        assert not any(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    jax.tree.map(np.testing.assert_array_equal, after["layer1.0"], running["layer1.0"])


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", activations.ACTIVATIONS)
def test_it_is_flaxs_batch_norm(shape, activation):
    given = problem(shape)
    with jax.enable_x64(True):
        exact = slopes(flaxs, *jax.tree.map(np.float64, given), activation)
    for got, wanted in zip(slopes(ours, *given, activation), exact, strict=True):
        wanted = np.asarray(wanted)
        assert got.shape == wanted.shape
        assert got.dtype == jnp.float32
        assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max() + 1e-6


@needs_compiler
@pytest.mark.parametrize("activation", ["none", "hard_swish"])
def test_devices_normalise_together(activation):
    x, params, weight = problem((8, 5, 5, 24))
    whole = slopes(ours, x, params, weight, activation)
    for devices in (1, 2, 4):
        part = functools.partial(ours, axis="batch")
        run = jax.pmap(
            lambda x, weight, part=part: slopes(part, x, params, weight, activation),
            axis_name="batch",
            devices=jax.devices()[:devices],
        )
        cut = [each.reshape(devices, -1, *each.shape[1:]) for each in (x, weight)]
        y, mean, variance, of_x, of_bias, of_scale = map(np.asarray, run(*cut))
        together = (
            y.reshape(x.shape), mean[0], variance[0],
            of_x.reshape(x.shape), of_bias.sum(0), of_scale.sum(0),
        )  # fmt: skip
        for got, wanted in zip(together, whole, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5 * float(np.abs(wanted).max()))


@needs_compiler
def test_many_pixels_keep_their_digits():
    """A million pixels far from zero: few are added up at a time, and what is lost is kept."""
    rng = np.random.default_rng(0)
    x = (30 + rng.standard_normal((1 << 20, 8))).astype(np.float32)
    sums = native.call(native.NORM_STATISTICS, (2, 8), x)
    exact = np.stack([x.astype(np.float64).sum(0), (x.astype(np.float64) ** 2).sum(0)])
    np.testing.assert_allclose(sums, exact, rtol=2e-7)


@needs_compiler
@pytest.mark.parametrize("activation", activations.ACTIVATIONS)
def test_extremes(activation):
    """A dead channel has finite gradients; a NaN stays in its channel and does not get lost."""
    x, params, weight = problem((4, 6, 6, 16))
    x[..., 3] = 0.0
    assert all(np.isfinite(a).all() for a in slopes(ours, x, params, weight, activation))
    x[1, 2, 3, 5] = np.nan
    y, mean, _, of_x, *_ = slopes(ours, x, params, weight, activation)
    for made in (y, mean, of_x):
        broken = np.isnan(made).reshape(-1, 16).any(0)
        assert broken[5]
        assert broken.sum() == 1


@needs_compiler
def test_a_variance_that_rounding_takes_below_zero_has_no_gradient():
    """As in Flax: and there the slope would be that of 1 / sqrt(epsilon)."""
    x, params, weight = problem((4, 6, 6, 16))
    x[:] = 300 + 1e-3 * x
    _, statistics = ours(x, params, "none")
    clamped = np.asarray(statistics["var"]) == 0
    assert clamped.any()
    of_x = slopes(ours, x, params, weight, "none")[3]
    centred = (weight - weight.mean((0, 1, 2))) * params["scale"] / np.sqrt(batch_norm_lib.EPSILON)
    np.testing.assert_allclose(of_x[..., clamped], centred[..., clamped], rtol=1e-4, atol=1e-3)


@needs_compiler
def test_statistics_are_not_lost_where_nobody_takes_them():
    x, params, _ = problem((2, 4, 4, 16))
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        norm.batch_norm(True, None, None)().apply({"params": params, "batch_stats": zeros(x)}, x)


@needs_compiler
def test_what_it_cannot_do_is_left_to_flax():
    x, params, _ = problem((2, 4, 4, 16))
    layer = norm.batch_norm(True, None, None)()
    assert layer._takes_compiled(x)
    few, some = x[..., :12], {name: value[:12] for name, value in params.items()}
    y, _ = norm.batch_norm(True, None, None)(activation="relu6").apply(
        {"params": some, "batch_stats": zeros(few)}, few, mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(y, flaxs(few, some, "relu6")[0])
    with lowering.forced("plain"):
        assert not layer._takes_compiled(x)
    assert not layer._takes_compiled(x[..., :12])
    assert not layer._takes_compiled(jnp.asarray(x, jnp.bfloat16))
    assert not norm.batch_norm(True, None, jnp.bfloat16)()._takes_compiled(x)
