"""Winograd's form is the convolution, and is taken only where a network is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from helpers import assert_only_frozen_networks_on_cpu_take
from kd_jax.kernels import native, plain, winograd

SHAPES = [(32, 16, 16), (16, 32, 32), (8, 64, 64), (16, 64, 128), (8, 128, 256), (12, 3, 5)]


def problem(size, channels_in, channels_out, scale=1.0, count=3):
    rng = np.random.default_rng(size)
    x = scale * rng.standard_normal((count, size, size, channels_in))
    kernel = rng.standard_normal((3, 3, channels_in, channels_out)) / np.sqrt(9 * channels_in)
    with jax.enable_x64(True):
        exact = lax.conv_general_dilated(
            jnp.asarray(x), jnp.asarray(kernel), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
    return x, kernel, np.asarray(exact)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_it_is_the_convolution(shape, scale):
    x, kernel, exact = problem(*shape, scale)
    with jax.enable_x64(True):  # in float64, where rounding hides nothing
        np.testing.assert_allclose(
            winograd.along_width(x, kernel), exact, rtol=1e-10, atol=1e-9 * scale
        )
    got = winograd.along_width(x.astype(np.float32), kernel.astype(np.float32))
    assert got.dtype == jnp.float32
    assert np.abs(got - exact).max() <= 4e-5 * np.abs(exact).max()


needs_compiler = pytest.mark.skipif(
    native.target(native.WINOGRAD) is None, reason="needs a C++ compiler: set CXX"
)


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [(4, 512, 512, 1.0, 50), (8, 16, 48, 1.0, 1), (8, 24, 40, 1.0, 2), (12, 8, 8), *SHAPES[:5]],
)
def test_the_compiled_form_is_the_convolution(shape):
    """Every number of tiles, of channels, and what is left over of both."""
    x, kernel, exact = problem(*shape)
    got = winograd.in_tiles(x.astype(np.float32), kernel.astype(np.float32))
    assert np.abs(got - exact).max() <= 4e-5 * np.abs(exact).max()


@needs_compiler
def test_the_compiled_form_is_the_same_everywhere():
    """Bits do not depend on the number of images, nor on which thread works."""
    x, kernel, _ = problem(8, 32, 64, count=40)
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    convolve = jax.jit(winograd.in_tiles)
    whole = np.asarray(convolve(x, kernel))
    for part in (slice(0, 1), slice(3, 20)):
        np.testing.assert_array_equal(convolve(x[part], kernel), whole[part])
    apart = jax.pmap(convolve, in_axes=(0, None))(x.reshape(4, 10, *x.shape[1:]), kernel)
    np.testing.assert_array_equal(np.asarray(apart).reshape(whole.shape), whole)


@needs_compiler
def test_the_compiled_form_has_the_gradient_of_the_convolution():
    x, kernel, _ = problem(8, 32, 48)
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)

    def slopes(convolve):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(convolve(*a))), argnums=(0, 1))(x, kernel)

    ours = slopes(winograd.in_tiles)
    theirs = slopes(lambda x, k: plain.conv2d(x, k, 1, ((1, 1), (1, 1))))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(b).max()))


@needs_compiler
@pytest.mark.parametrize("arch", ["resnet20", "vgg11_bn"])
def test_only_frozen_networks_on_cpu_take_it(arch, monkeypatch):
    assert_only_frozen_networks_on_cpu_take(arch, winograd, "in_tiles", monkeypatch)
