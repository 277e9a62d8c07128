"""Networks equal their PyTorch references; lowerings equal the ordinary convolution."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT, golden_card, golden_images, golden_logits, golden_state_dict, run
from kd_jax import models
from kd_jax.kernels import conv
from kd_jax.kernels import lowering as lowering_lib
from kd_jax.models import layers, norm, zoo
from kd_jax.runtime.errors import UserError
from kd_jax.weights import published, torch_import

# Architecture -> golden file. Every network of the zoo has a row, or says why it has none.
REFERENCES = {
    "resnet20": "resnet20",
    "resnet44": "resnet44",
    "vgg11_bn": "vgg11_bn",
    "mobilenetv2_x0_75": "mobilenetv2_x0_75",
    "mobilenet_v3_small": "mobilenet_v3_small_torchvision",
    "mobilenet_v3_small_cifar": "mobilenet_v3_small_cifar",
    "mobilenet_v3_large_cifar": "mobilenet_v3_large_cifar",
}
# The same code in another size: as slow to compile, and less likely to differ.
SIZES = {
    **{arch: arch for arch in ("resnet8", "resnet32", "resnet56")},
    **{arch: arch for arch in ("vgg13_bn", "vgg16_bn", "vgg19_bn")},
    **{arch: arch for arch in ("mobilenetv2_x0_5", "mobilenetv2_x1_0", "mobilenetv2_x1_4")},
    "mobilenet_v3_large": "mobilenet_v3_large_torchvision",
}
GOLDEN = REFERENCES | SIZES
ONE_OF_EACH = ("resnet20", "vgg11_bn", "mobilenetv2_x0_75", "mobilenet_v3_small_cifar")
IN_OTHER_SIZES = [pytest.param(arch, marks=pytest.mark.proof) for arch in SIZES]
# Millions of parameters and of multiply-adds at 100 classes and 32 pixels, as the README of
# chenyaofo/pytorch-cifar-models rounds them.
PUBLISHED_SIBLINGS = {
    "resnet32": (0.47, 69.13),
    "resnet56": (0.86, 125.75),
    "vgg13_bn": (9.99, 228.84),
    "vgg16_bn": (15.30, 313.77),
    "vgg19_bn": (20.61, 398.71),
    "mobilenetv2_x0_5": (0.82, 28.08),
    "mobilenetv2_x1_0": (2.35, 88.09),
    "mobilenetv2_x1_4": (4.50, 170.23),
}
# Parameters at 1,000 classes, in millions as the documentation of pytorch-image-models rounds them,
# which reads the published files; multiply-adds at 224 pixels as counted here. Golden outputs, and
# what takes real arrays, are in test_bit.py: of small members of the family.
BIT = {
    "bit_r50x1": (25.55, 4089.18),
    "bit_r101x1": (44.54, 7801.41),
    "bit_r152x2": (236.34, 45_814.38),
}
# Table 1 of the study, in millions.
TABLE_1 = {
    "resnet44": (0.67, 97.44),
    "vgg11_bn": (9.80, 153.34),
    "mobilenetv2_x0_75": (1.48, 59.43),
    "mobilenet_v3_small_cifar": (1.61, 17.59),
}
IMAGE_SHAPE = (32, 32, 3)


def small(arch):
    """A network of ten classes."""
    return models.build(arch, 10, (0.5,) * 3, (0.25,) * 3)


def raw_network(arch):
    """A network that takes its images as they are."""
    return models.build(arch, 100, (0.0,) * 3, (1.0,) * 3)


def test_every_network_has_a_row():
    assert set(zoo.NAMES) == set(published.REFERENCES) == {*GOLDEN, *BIT}
    files = {path.stem for path in (ROOT / "tests" / "golden").glob("*.npz")} - {"kd_steps"}
    assert set(GOLDEN.values()) == files
    assert {arch for arch, by in published.REFERENCES.items() if "NumPy" in by} == set(BIT)


@pytest.mark.parametrize("lowering", ["cpu", "plain"])
@pytest.mark.parametrize("arch", [*REFERENCES, *IN_OTHER_SIZES])
def test_logits_equal_the_reference(arch, lowering):
    network = raw_network(arch)
    state_dict = golden_state_dict(GOLDEN[arch])
    variables = torch_import.from_state_dict(network, state_dict, IMAGE_SHAPE)
    with lowering_lib.forced(lowering):
        logits = jax.jit(lambda v, x: network.logits(v, x))(variables, golden_images())
    golden = golden_logits(GOLDEN[arch])
    assert np.abs(logits - golden).max() <= 1e-4 * np.abs(golden).max()


@pytest.mark.parametrize("arch", GOLDEN)
def test_counts_equal_the_reference(arch):
    card = golden_card(GOLDEN[arch])
    assert models.count_params(raw_network(arch), IMAGE_SHAPE) == card["params"]
    assert models.count_madds(raw_network(arch), IMAGE_SHAPE) == card["madds_32x32"]


@pytest.mark.parametrize(("arch", "millions"), [*PUBLISHED_SIBLINGS.items(), *TABLE_1.items()])
def test_counts_equal_what_is_published(arch, millions):
    params = models.count_params(raw_network(arch), IMAGE_SHAPE)
    madds = models.count_madds(raw_network(arch), IMAGE_SHAPE)
    assert (params / 1e6, madds / 1e6) == pytest.approx(millions, abs=0.006)


def test_the_large_network_keeps_the_resolution_where_its_reference_does():
    """In the first block that would halve it, which is the second."""
    assert models.count_madds(raw_network("mobilenet_v3_large_cifar"), IMAGE_SHAPE) == 66_572_384


def test_torchvisions_large_network_has_its_parameters_at_1000_classes():
    network = models.build("mobilenet_v3_large", 1000, (0.0,) * 3, (1.0,) * 3)
    assert models.count_params(network, IMAGE_SHAPE) == 5_483_032  # torchvision's documentation


@pytest.mark.parametrize("arch", BIT)
def test_counts_of_networks_for_large_images(arch):
    network = models.build(arch, 1000, (0.5,) * 3, (0.5,) * 3)
    shape = (224, 224, 3)
    params, madds = models.count_params(network, shape), models.count_madds(network, shape)
    assert (params / 1e6, madds / 1e6) == pytest.approx(BIT[arch], abs=0.006)
    if arch == "bit_r50x1":
        assert params == 25_549_352


def gradients(network, train):
    """Gradient of a loss on a random batch, by leaf; compiled quickly, not well."""
    variables = network.init(0, IMAGE_SHAPE)
    rng = np.random.default_rng(0)
    pixels = rng.random((4, *IMAGE_SHAPE), np.float32)
    weights = rng.standard_normal((4, 10)).astype(np.float32)

    def loss_of(params):
        own = {**variables, "params": params}
        if train:
            logits, _ = network.train_logits(own, pixels, None)
        else:
            logits = network.logits(own, pixels)
        return jnp.sum(weights * jax.nn.log_softmax(logits))

    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    params = variables["params"]
    grads = jax.jit(jax.grad(loss_of)).lower(params).compile(compiler_options=options)(params)
    return flax.traverse_util.flatten_dict(jax.device_get(grads))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [
    pytest.param(arch, marks=() if arch in ONE_OF_EACH else pytest.mark.proof) for arch in GOLDEN
])  # fmt: skip
def test_every_parameter_gets_a_gradient(arch):
    """In eval mode: in train mode the next norm takes away what a bias before it adds."""
    for path, grad in gradients(small(arch), train=False).items():
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet20", "vgg11_bn", "mobilenetv2_x0_5", "mobilenet_v3_small"])
def test_gradients_in_train_mode(arch):
    for path, grad in gradients(small(arch), train=True).items():
        assert np.isfinite(grad).all(), path
        if path[-1] != "bias":
            assert np.abs(grad).max() > 1e-5, path


@pytest.mark.parametrize("arch", zoo.NAMES)
def test_other_image_sizes_and_classes(arch):
    network = models.build(arch, 7, (0.5,) * 3, (0.25,) * 3)
    shape = (64, 96, 3)
    variables = models.abstract_variables(network, shape)
    pixels = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    assert jax.eval_shape(network.logits, variables, pixels).shape == (2, 7)


def test_an_image_too_small_for_the_strides_is_one_sentence():
    with pytest.raises(UserError, match="vgg11_bn leaves nothing of an image of 16 x 16 pixels"):
        raw_network("vgg11_bn").init(0, (16, 16, 3))


def test_the_zoo_as_a_table():
    done = run("kd_jax.models")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines()[2:]}
    assert set(rows) == set(zoo.NAMES)
    assert "71.63 / 91.58 | 71.63 / 91.58" in rows["resnet44"]
    assert " 9.80 |" in rows["vgg11_bn"]
    assert "153.34" in rows["vgg11_bn"]
    assert rows["mobilenet_v3_large_cifar"].endswith(" ShowLo/MobileNetV3 |")
    assert "none of this size: small ones, a definition in NumPy" in rows["bit_r50x1"]


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


@pytest.mark.parametrize(("arch", "layer", "std", "uniform"), [
    ("resnet20", "fc", (1 / 64) ** 0.5 / 3**0.5, True),
    ("vgg11_bn", "classifier.6", 0.01, False),
    ("mobilenetv2_x0_5", "classifier.1", 0.01, False),
    ("mobilenet_v3_small", "classifier.3", 0.01, False),
])  # fmt: skip
def test_the_last_layer_begins_as_its_references(arch, layer, std, uniform):
    """chenyaofo's ResNet leaves it to PyTorch's default for linear layers, bias included."""
    last = raw_network(arch).init(1, IMAGE_SHAPE)["params"][layer]
    assert last["kernel"].std() == pytest.approx(std, rel=0.05)
    largest = np.abs(last["kernel"]).max()
    if not uniform:
        assert largest > 3 * std
        assert (last["bias"] == 0).all()
        return
    for leaf in (last["kernel"], last["bias"]):
        assert 0.97 / 8 < np.abs(leaf).max() <= 1 / 8
        assert leaf.std() == pytest.approx(std, rel=0.2)
        assert leaf.mean() == pytest.approx(0, abs=0.02)


def test_pytorch_begins_a_linear_layer_as_is_said():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 100)
    for leaf in (layer.weight, layer.bias):
        largest = float(leaf.detach().abs().max())
        assert 0.97 / 8 < largest <= 1 / 8


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("cin", "cout", "groups"), [(3, 8, 1), (8, 8, 8), (8, 16, 1)])
def test_lowering_equals_the_ordinary_convolution(size, taps, stride, cin, cout, groups):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, size, size + 1, cin)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((taps, taps, cin // groups, cout)), jnp.float32)

    def value_and_gradients(x, kernel):
        y, vjp = jax.vjp(lambda x, k: conv.conv2d(x, k, stride, groups), x, kernel)
        return y, *vjp(jnp.cos(y))

    results = []
    for name in ("cpu", "plain"):
        with lowering_lib.forced(name):
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
        early = norm.running_average(early, of_batch, step, momentum=0.99)
    assert float(early["var"]) == pytest.approx(0.01, rel=0.01)
    learned = norm.running_average(running, of_batch, None, momentum=0.99)
    assert float(learned["mean"]) == pytest.approx(0.05, rel=1e-5)
    assert float(learned["var"]) == pytest.approx(0.9901, rel=1e-5)
    late = norm.running_average(running, of_batch, 10_000, momentum=0.99)
    assert float(late["mean"]) == pytest.approx(0.05, rel=1e-5)
    assert float(late["var"]) == pytest.approx(0.9901, rel=1e-5)


def test_unknown_architecture_is_one_sentence():
    with pytest.raises(UserError, match=r"unknown architecture 'resnet45'.*resnet44"):
        models.build("resnet45", 10, (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("arch", "size"),
    [("resnet44", 16), ("vgg11_bn", 32), ("mobilenetv2_x0_75", 32),
     ("mobilenet_v3_small_cifar", 16)],
)  # fmt: skip
def test_chunks_are_as_large_as_was_measured_best(arch, size):
    """The sizes that docs/performance.md states."""
    network = models.build(arch, 100, (0.5,) * 3, (0.25,) * 3)
    variables = jax.eval_shape(lambda: network.init(0, IMAGE_SHAPE))
    pixels = jax.ShapeDtypeStruct((256, *IMAGE_SHAPE), jnp.float32)
    with lowering_lib.forced("cpu"):
        program = jax.make_jaxpr(network.logits)(variables, pixels)
    (scan,) = (e for e in program.eqns if e.primitive.name == "scan")
    assert scan.params["length"] == 256 // size


@pytest.mark.parametrize("count", [1, 16, 21, 64])
def test_a_frozen_network_in_chunks_gives_the_same(count):
    network = raw_network("resnet8")
    variables = network.init(0, IMAGE_SHAPE)
    pixels = np.random.default_rng(1).random((count, *IMAGE_SHAPE), np.float32)
    with lowering_lib.forced("plain"):
        whole = network.logits(variables, pixels)
    with lowering_lib.forced("cpu"):
        chunked = jax.jit(network.logits)
        program = str(jax.make_jaxpr(chunked)(variables, pixels))
        np.testing.assert_allclose(chunked(variables, pixels), whole, rtol=1e-4, atol=1e-5)
    assert ("scan" in program) == (count > 16)
