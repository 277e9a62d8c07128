"""Depthwise convolutions, compiled and as XLA's loops: values and gradients of the ordinary one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.kernels import depthwise, native
from kd_jax.kernels import plain as plain_lib

# Images, height, width, channels, rows and columns of the kernel, stride, padding: the zoo's kinds;
# odd sizes and strides; kernels that are cut to what a small map meets; maps smaller than a kernel;
# rows wider than a block; channels that leave half a vector.
SHAPES = [
    (3, 32, 32, 16, 3, 3, 1, ((1, 1), (1, 1))),
    (2, 32, 32, 72, 3, 3, 2, ((1, 1), (1, 1))),
    (2, 16, 16, 96, 5, 5, 2, ((2, 2), (2, 2))),
    (3, 8, 8, 120, 5, 5, 1, ((2, 2), (2, 2))),
    (5, 4, 4, 8, 5, 5, 1, ((2, 2), (2, 2))),
    (2, 15, 17, 40, 5, 5, 2, ((2, 2), (2, 2))),
    (2, 7, 11, 24, 3, 3, 3, ((1, 0), (1, 1))),
    (2, 9, 8, 24, 5, 3, 2, ((0, 2), (1, 0))),
    (4, 2, 2, 8, 3, 3, 1, ((1, 1), (1, 1))),
    (4, 2, 1, 16, 2, 1, 2, ((0, 0), (0, 0))),
    (2, 1, 1, 48, 1, 1, 1, ((0, 0), (0, 0))),
    (1, 5, 3, 8, 5, 5, 1, ((2, 2), (2, 2))),
    (1, 3, 700, 24, 3, 3, 1, ((1, 1), (1, 1))),
]
needs_compiler = pytest.mark.skipif(
    native.target(native.DEPTHWISE) is None, reason="needs a C++ compiler: set CXX"
)
FORMS = [pytest.param(True, marks=needs_compiler, id="compiled"), pytest.param(False, id="loops")]


def problem(images, height, width, channels, rows, columns, *_):
    rng = np.random.default_rng(height)
    x = rng.standard_normal((images, height, width, channels), np.float32)
    return x, rng.standard_normal((rows, columns, 1, channels), np.float32)


def plain(x, kernel, stride, padding):
    return plain_lib.conv2d(x, kernel, stride, padding, x.shape[-1])


def convolve(compiled, x, kernel, stride, padding):
    return depthwise.conv2d(x, kernel, stride, padding, compiled)


def slopes(convolve, x, kernel, stride, padding):
    """Return the output and the gradients of x and of the kernel, of something smooth of it."""

    def loss(x, kernel):
        y = convolve(x, kernel, stride, padding)
        return jnp.sum(jnp.sin(y)), y

    (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    return y, *grads


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compiled", FORMS)
def test_it_is_the_convolution_and_has_its_gradients(shape, compiled):
    x, kernel = problem(*shape)
    assert not compiled or depthwise.suits(x, kernel)
    ours = slopes(functools.partial(convolve, compiled), x, kernel, *shape[6:])
    with jax.enable_x64(True):
        exact = slopes(plain, x.astype(np.float64), kernel.astype(np.float64), *shape[6:])
    for got, wanted in zip(ours, exact, strict=True):
        wanted = np.asarray(wanted)
        assert got.shape == wanted.shape
        assert got.dtype == jnp.float32
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max() + 1e-6


@needs_compiler
def test_it_is_the_same_everywhere():
    """Bits of an image do not depend on how many there are, nor on which thread works."""
    x, kernel = problem(20, *SHAPES[3][1:])
    run = jax.jit(lambda x: convolve(True, x, kernel, 1, SHAPES[3][7]))
    whole = np.asarray(run(x))
    np.testing.assert_array_equal(run(x[3:7]), whole[3:7])
    apart = jax.pmap(run)(x.reshape(4, 5, *x.shape[1:]))
    np.testing.assert_array_equal(np.asarray(apart).reshape(whole.shape), whole)


@needs_compiler
def test_a_broken_network_does_not_look_like_a_quiet_one():
    x, kernel = problem(*SHAPES[1])
    x[1, 5, 7] = np.nan
    y, x_grad, kernel_grad = slopes(functools.partial(convolve, True), x, kernel, *SHAPES[1][6:])
    assert np.isnan(y[1, 2:4, 3:5]).all()
    assert np.isnan(x_grad[1, 5, 7]).all()
    assert np.isnan(kernel_grad).any(axis=(0, 1)).all()
    assert np.isfinite(y[0]).all()


@needs_compiler
def test_other_channels_and_types_are_left_to_xla():
    x, kernel = problem(2, 8, 8, 12, 3, 3)
    assert not depthwise.suits(x, kernel)
    x, kernel = (jnp.asarray(each, jnp.bfloat16) for each in problem(2, 8, 8, 16, 3, 3))
    assert not depthwise.suits(x, kernel)
