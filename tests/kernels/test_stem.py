"""The compiled stem is the convolution, and is taken only where a network is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import assert_only_frozen_networks_on_cpu_take
from kd_jax.kernels import conv, lowering, native, stem

pytestmark = pytest.mark.skipif(
    native.target(native.STEM) is None, reason="needs a C++ compiler: set CXX"
)
# Images, height, width, channels in and out, side of the kernel, stride: the zoo's; grey, and four
# channels; panels of 16 and of 8; odd sizes; maps smaller than the kernel.
STEMS = [
    (3, 32, 32, 3, 16, 3, 1),
    (2, 32, 32, 3, 64, 3, 1),
    (2, 32, 32, 3, 24, 3, 2),
    (1, 64, 48, 3, 64, 7, 2),
    (2, 15, 17, 1, 8, 5, 1),
    (2, 9, 1, 4, 56, 3, 2),
    (1, 2, 3, 2, 40, 7, 1),
    (2, 6, 5, 3, 8, 1, 1),
]


def problem(images, height, width, channels, features, side, _):
    rng = np.random.default_rng(height)
    x = rng.standard_normal((images, height, width, channels))
    kernel = rng.standard_normal((side, side, channels, features)) / (side * np.sqrt(channels))
    return x.astype(np.float32), kernel.astype(np.float32)


@pytest.mark.parametrize("shape", STEMS)
def test_it_is_the_convolution(shape):
    x, kernel = problem(*shape)
    assert stem.suits(x, kernel)
    with lowering.forced("plain"), jax.enable_x64(True):
        exact = conv.conv2d(
            jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64), shape[-1]
        )
    got = stem.conv2d(x, kernel, shape[-1])
    assert got.shape == exact.shape
    assert got.dtype == jnp.float32
    exact = np.asarray(exact)
    assert np.abs(got - exact).max() <= 2e-6 * np.abs(exact).max()


def test_it_is_the_same_everywhere():
    """Bits do not depend on the number of images, nor on which thread works."""
    x, kernel = problem(20, *STEMS[0][1:])
    whole = np.asarray(stem.conv2d(x, kernel, 1))
    for part in (slice(0, 1), slice(3, 20)):
        np.testing.assert_array_equal(stem.conv2d(x[part], kernel, 1), whole[part])
    apart = jax.pmap(lambda x: stem.conv2d(x, kernel, 1))(x.reshape(4, 5, *x.shape[1:]))
    np.testing.assert_array_equal(np.asarray(apart).reshape(whole.shape), whole)


def test_its_gradient_is_that_of_the_convolution():
    x, kernel = problem(*STEMS[2])

    def slopes(convolve):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(convolve(*a, 2))), argnums=(0, 1))(x, kernel)

    with lowering.forced("plain"):
        theirs = slopes(conv.conv2d)
    for a, b in zip(slopes(stem.conv2d), theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(b).max()))


@pytest.mark.parametrize("arch", ["resnet20", "vgg11_bn", "mobilenetv2_x0_75"])
def test_only_frozen_networks_on_cpu_take_it(arch, monkeypatch):
    assert_only_frozen_networks_on_cpu_take(arch, stem, "conv2d", monkeypatch)
