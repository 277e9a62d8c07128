"""The compiled block of MobileNetV2 is its layers, and is taken only where a network is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import models
from kd_jax.kernels import inverted_residual, lowering, native

pytestmark = pytest.mark.skipif(
    native.target(native.INVERTED_RESIDUAL) is None, reason="needs a C++ compiler: set CXX"
)
# Images, height, width, channels in and out, stride, expansion: maps that are worked on whole, some
# images at a time and one left over; in strips, which odd heights do not fill; wider than high;
# channels that leave panels of 16 and of 8; shortcuts and none; blocks that do not expand (0).
BLOCKS = [
    (3, 32, 32, 16, 24, 1, 6),
    (2, 32, 32, 24, 24, 2, 6),
    (21, 16, 16, 24, 24, 1, 6),
    (9, 8, 8, 8, 40, 1, 7),
    (65, 4, 4, 120, 240, 1, 6),
    (2, 40, 48, 8, 8, 1, 3),
    (2, 41, 37, 8, 16, 1, 2),
    (2, 41, 37, 8, 16, 2, 2),
    (2, 9, 1, 8, 8, 2, 1),
    (1, 1, 1, 8, 8, 1, 4),
    (3, 32, 32, 24, 16, 1, 0),
    (20, 9, 7, 40, 40, 1, 0),
    (2, 41, 37, 12 * 8, 16, 2, 0),
]


def problem(images, height, width, channels, features, stride, expansion):
    rng = np.random.default_rng(height)
    hidden = channels * (expansion or 1)

    def normal(*shape, std=1.0):
        return (std * rng.standard_normal(shape)).astype(np.float32)

    weights = inverted_residual._Weights(
        normal(channels if expansion else 0, hidden, std=channels**-0.5), normal(2, hidden) + 1,
        normal(9, hidden, std=1 / 3), normal(2, hidden) + 1,
        normal(hidden, features, std=hidden**-0.5), normal(2, features),
    )  # fmt: skip
    return normal(images, height, width, channels, std=2.0), weights


@pytest.mark.parametrize("block", BLOCKS)
def test_it_is_its_layers(block):
    x, weights = problem(*block)
    stride = block[5]
    with lowering.forced("plain"), jax.enable_x64(True):
        exact = inverted_residual._layer_by_layer(
            jnp.asarray(x, jnp.float64), jax.tree.map(jnp.float64, weights), stride
        )
    got = inverted_residual._compiled(x, weights, stride)
    assert got.shape == exact.shape
    assert got.dtype == jnp.float32
    exact = np.asarray(exact)
    assert np.abs(got - exact).max() <= 4e-6 * np.abs(exact).max()


@pytest.mark.parametrize("block", [BLOCKS[2], BLOCKS[5]])
def test_it_is_the_same_everywhere(block):
    """Bits do not depend on the number of images, nor on which thread works."""
    x, weights = problem(20, *block[1:])
    whole = np.asarray(inverted_residual._compiled(x, weights, 1))
    for part in (slice(0, 1), slice(3, 20)):
        np.testing.assert_array_equal(inverted_residual._compiled(x[part], weights, 1), whole[part])
    apart = jax.pmap(lambda x: inverted_residual._compiled(x, weights, 1))(
        x.reshape(4, 5, *x.shape[1:])
    )
    np.testing.assert_array_equal(np.asarray(apart).reshape(whole.shape), whole)


def test_a_broken_network_does_not_look_like_a_quiet_one():
    x, weights = problem(*BLOCKS[0])
    x[1, 5, 7] = np.nan
    got = np.asarray(inverted_residual._compiled(x, weights, 1))
    assert np.isnan(got[1, 4:7, 6:9]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_its_gradient_is_that_of_its_layers():
    x, weights = problem(*BLOCKS[5])

    def slopes(block):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(block(*a, 1))), argnums=(0, 1))(x, weights)

    ours, theirs = slopes(inverted_residual._compiled), slopes(inverted_residual._layer_by_layer)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(b).max()))


def test_only_frozen_networks_on_cpu_take_it(monkeypatch):
    calls = []
    original = inverted_residual._compiled
    monkeypatch.setattr(inverted_residual, "_compiled", lambda *a: calls.append(1) or original(*a))
    network = models.build("mobilenetv2_x0_75", 10, (0.5,) * 3, (0.25,) * 3)
    pixels = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(0, (32, 32, 3)))

    def ask(built=network):
        calls.clear()
        jax.eval_shape(built.logits, variables, pixels)
        return len(calls)

    with lowering.forced("cpu"):
        jax.eval_shape(lambda v, p: network.train_logits(v, p, None), variables, pixels)
        assert not calls
        assert ask() == 2 * 17  # every block; once more to see how large its maps are
        bfloat16 = models.build("mobilenetv2_x0_75", 10, (0.5,) * 3, (0.25,) * 3, dtype="bfloat16")
        assert not ask(bfloat16)
    with lowering.forced("plain"):
        assert not ask()
