"""Winograd's form is the convolution, and is taken only where a network is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kd_jax import models
from kd_jax.models import layers, winograd

SHAPES = [(32, 16, 16), (16, 32, 32), (8, 64, 64), (16, 64, 128), (8, 128, 256), (12, 3, 5)]


@pytest.mark.parametrize(("size", "channels_in", "channels_out"), SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_it_is_the_convolution(size, channels_in, channels_out, scale):
    rng = np.random.default_rng(size)
    x = scale * rng.standard_normal((3, size, size, channels_in))
    kernel = rng.standard_normal((3, 3, channels_in, channels_out)) / np.sqrt(9 * channels_in)
    with jax.enable_x64(True):
        exact = lax.conv_general_dilated(
            jnp.asarray(x), jnp.asarray(kernel), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        np.testing.assert_allclose(
            winograd.conv3x3(x, kernel), exact, rtol=1e-10, atol=1e-9 * scale
        )
    got = winograd.conv3x3(x.astype(np.float32), kernel.astype(np.float32))
    assert got.dtype == jnp.float32
    assert np.abs(got - exact).max() <= 2e-5 * np.abs(exact).max()


@pytest.mark.parametrize("arch", ["resnet20", "vgg11_bn"])
def test_only_frozen_networks_on_cpu_take_it(arch, monkeypatch):
    calls = []
    original = winograd.conv3x3
    monkeypatch.setattr(winograd, "conv3x3", lambda *a: calls.append(1) or original(*a))
    network = models.build(arch, 10, (0.5,) * 3, (0.25,) * 3)
    pixels = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(0, (32, 32, 3)))
    with layers.lowering("cpu"):
        jax.eval_shape(lambda v, p: network.train_logits(v, p, None), variables, pixels)
        assert not calls
        jax.eval_shape(network.logits, variables, pixels)
        assert calls
    calls.clear()
    with layers.lowering("plain"):
        jax.eval_shape(network.logits, variables, pixels)
    assert not calls
