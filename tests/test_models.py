"""Networks equal their PyTorch references; lowerings equal the ordinary convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import golden_card, golden_images, golden_logits, golden_state_dict
from kd_jax import models, torch_import
from kd_jax.errors import UserError
from kd_jax.models import layers

# Architecture -> golden file. Every network of the zoo has a row, or says why it has none.
REFERENCES = {
    "resnet20": "resnet20",
    "resnet44": "resnet44",
    "vgg11_bn": "vgg11_bn",
    "mobilenetv2_x0_75": "mobilenetv2_x0_75",
    "mobilenet_v3_small": "mobilenet_v3_small_torchvision",
    "mobilenet_v3_small_cifar": "mobilenet_v3_small_cifar",
}
# Same code as a golden sibling, another size. Parameters at 100 classes: published (rounded to
# 10,000 by chenyaofo/pytorch-cifar-models), or torchvision's 5,483,032 at 1,000 classes.
SIBLINGS = {
    "resnet8": None,  # nobody publishes it
    "resnet32": 0.47e6,
    "resnet56": 0.86e6,
    "vgg13_bn": 9.99e6,
    "vgg16_bn": 15.30e6,
    "vgg19_bn": 20.61e6,
    "mobilenetv2_x0_5": 0.82e6,
    "mobilenetv2_x1_0": 2.35e6,
    "mobilenetv2_x1_4": 4.50e6,
    "mobilenet_v3_large": 5_483_032 - 900 * 1281,
    "mobilenet_v3_large_cifar": None,  # nobody publishes it
}
IMAGE_SHAPE = (32, 32, 3)


def raw_network(arch):
    """A network that takes its images as they are."""
    return models.build(arch, 100, (0.0,) * 3, (1.0,) * 3)


def test_every_network_has_a_row():
    assert set(models.MODELS) == set(REFERENCES) | set(SIBLINGS)


@pytest.mark.parametrize("lowering", ["cpu", "plain"])
@pytest.mark.parametrize("arch", REFERENCES)
def test_logits_equal_the_reference(arch, lowering):
    network = raw_network(arch)
    state_dict = golden_state_dict(REFERENCES[arch])
    variables = torch_import.from_state_dict(network, state_dict, IMAGE_SHAPE)
    with layers.lowering(lowering):
        logits = jax.jit(lambda v, x: network.logits(v, x))(variables, golden_images())
    golden = golden_logits(REFERENCES[arch])
    assert np.abs(logits - golden).max() <= 1e-4 * np.abs(golden).max()


@pytest.mark.parametrize("arch", REFERENCES)
def test_counts_equal_the_reference(arch):
    card = golden_card(REFERENCES[arch])
    assert models.count_params(raw_network(arch), IMAGE_SHAPE) == card["params"]
    assert models.count_madds(raw_network(arch), IMAGE_SHAPE) == card["madds_32x32"]


@pytest.mark.parametrize("arch", SIBLINGS)
def test_counts_of_siblings(arch):
    params = models.count_params(raw_network(arch), IMAGE_SHAPE)
    assert SIBLINGS[arch] is None or params == pytest.approx(SIBLINGS[arch], abs=5_000)


def test_normalisation_belongs_to_the_network():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    own = models.build("resnet8", 10, mean, std)
    raw = models.build("resnet8", 10, (0.0,) * 3, (1.0,) * 3)
    variables = own.init(0, IMAGE_SHAPE)
    pixels = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    normalised = (pixels - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(
        own.logits(variables, pixels), raw.logits(variables, normalised), rtol=1e-4, atol=1e-5
    )


def test_init_depends_on_the_seed_alone():
    network = raw_network("resnet8")
    first, again, other = (network.init(seed, IMAGE_SHAPE) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["params"]["layer1.0"]["conv1"]["kernel"]
    assert not np.array_equal(kernel, other["params"]["layer1.0"]["conv1"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.1)
    assert (first["batch_stats"]["bn1"]["var"] == 1).all()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("cin", "cout", "groups"), [(3, 8, 1), (8, 8, 8), (8, 16, 1)])
def test_lowering_equals_the_ordinary_convolution(size, taps, stride, cin, cout, groups):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, size, size + 1, cin)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((taps, taps, cin // groups, cout)), jnp.float32)

    def value_and_gradients(x, kernel):
        y, vjp = jax.vjp(lambda x, k: layers.conv2d(x, k, stride, groups), x, kernel)
        return y, *vjp(jnp.cos(y))

    results = []
    for name in ("cpu", "plain"):
        with layers.lowering(name):
            results.append(value_and_gradients(x, kernel))
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-4, atol=2e-5)


def test_dropout_is_the_same_however_the_batch_is_split():
    keys = jax.random.split(jax.random.key(0), 8)
    x = jnp.ones((8, 50))
    whole = layers.dropout(x, 0.4, keys)
    halves = [layers.dropout(x[i : i + 4], 0.4, keys[i : i + 4]) for i in (0, 4)]
    np.testing.assert_array_equal(whole, jnp.concatenate(halves))
    assert float(whole.mean()) == pytest.approx(1.0, abs=0.15)
    np.testing.assert_array_equal(layers.dropout(x, 0.4, None), x)


def test_running_statistics_forget_their_start_and_keep_their_momentum():
    running = {"mean": jnp.array(0.0), "var": jnp.array(1.0)}
    of_batch = {"mean": jnp.array(5.0), "var": jnp.array(0.01)}
    early = running
    for step in range(20):
        early = layers.average_statistics(early, of_batch, step, momentum=0.99)
    assert float(early["var"]) == pytest.approx(0.01, rel=0.01)
    late = layers.average_statistics(running, of_batch, 10_000, momentum=0.99)
    assert float(late["mean"]) == pytest.approx(0.05, rel=1e-5)
    assert float(late["var"]) == pytest.approx(0.9901, rel=1e-5)


def test_unknown_architecture_is_one_sentence():
    with pytest.raises(UserError, match=r"unknown architecture 'resnet45'.*resnet44"):
        models.build("resnet45", 10, (0.5,), (0.5,))
