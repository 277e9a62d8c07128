"""Files that hold a program answer as the network does, for one image and for several."""

import functools
import io
import json
import zipfile
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from helpers import patched_zoo
from kd_jax import models
from kd_jax.export import formats, function, graph, graph_rules, runtimes
from kd_jax.export.exporter import FAMILIES
from kd_jax.models import bit
from kd_jax.runtime.errors import UserError
from networks import GOLDEN, SHAPE, golden, noise, of_network
from tiny_runs import digits_config  # noqa: F401, `tiny` is in the zoo for files that have it

NAMES = tuple(f"class {number}" for number in range(100))


def written(name, source, directory, outputs="logits"):
    """Return the path of a file in a format, and what runs it; skip where that is not there."""
    entry = formats.FORMATS[name]
    for module in entry.packages:
        pytest.importorskip(module, reason="pip install 'kd_jax[export]'")
    path = directory / f"network{entry.suffix}"
    family = FAMILIES[entry.family]
    path.write_bytes(family.content(source, outputs, **entry.arguments))
    return path, runtimes.opened(entry.family, path.read_bytes(), 2).call


def expected(source, images):
    return function.student_logits(source.network, source.variables, images)


def assert_near(answers, logits, tolerance=1e-4):
    assert answers.shape == logits.shape
    assert answers.dtype == np.float32
    assert np.abs(answers - logits).max() <= tolerance * np.abs(logits).max()


@functools.cache
def golden_with_logits(arch):
    """A network of the zoo, and its logits of five images: the same for each format."""
    source = golden(arch, GOLDEN[arch])
    return source, expected(source, noise(5).images)


def assert_near_in_any_batch(run, source, tolerance=1e-4, logits=None):
    images = noise(5).images
    logits = expected(source, images) if logits is None else logits
    assert_near(run(images[3:4]), logits[3:4], tolerance)
    assert_near(run(images), logits, tolerance)
    assert_near(run(images[:1]), logits[:1], tolerance)


@pytest.mark.parametrize("name", ["stablehlo", "onnx"])
@pytest.mark.parametrize("arch", GOLDEN)
def test_a_file_answers_as_the_network(name, arch, tmp_path):
    source, logits = golden_with_logits(arch)
    _, run = written(name, source, tmp_path)
    assert_near_in_any_batch(run, source, logits=logits)


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_group_norms_and_padded_pooling_are_held_too(name, tmp_path):
    small = functools.partial(bit.BiT, units=(1, 1), width_factor=0.5)
    with patched_zoo(small_bit=small):
        network = models.build("small_bit", 100, (0.5,) * 3, (0.25,) * 3)
        variables = network.init(0, SHAPE)
        head = variables["params"]["head.conv"]  # zeros at first
        head["kernel"] = np.random.default_rng(0).normal(size=head["kernel"].shape).astype("f")
        source = of_network(network, variables)
        assert_near_in_any_batch(written(name, source, tmp_path)[1], source)


def tiny(names=None):
    network = models.build("tiny", 100, (0.5,) * 3, (0.25,) * 3)
    return of_network(network, network.init(0, SHAPE), names)


@pytest.mark.parametrize(("name", "tolerance"), [
    ("stablehlo", 1e-5), ("onnx", 1e-5), ("tflite", 1e-5), ("tflite-float16", 1e-2),
    ("tflite-int8", 0.2),
])  # fmt: skip
def test_every_format_holds_a_small_network_for_any_batch(name, tolerance, tmp_path):
    source = tiny()
    _, run = written(name, source, tmp_path)
    assert_near_in_any_batch(run, source, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in GOLDEN if not arch.startswith("vgg")]
                         + [pytest.param("vgg11_bn", marks=pytest.mark.proof)])  # fmt: skip
def test_tensorflow_lite_holds_every_family(arch, tmp_path):
    source, logits = golden_with_logits(arch)
    _, run = written("tflite", source, tmp_path)
    assert_near_in_any_batch(run, source, logits=logits)


@pytest.mark.parametrize("name", ["stablehlo", "onnx", "tflite"])
def test_probabilities_are_inside_if_asked_for(name, tmp_path):
    source = tiny()
    images = noise(3).images
    _, run = written(name, source, tmp_path, "probabilities")
    probabilities = np.asarray(jax.nn.softmax(expected(source, images)))
    np.testing.assert_allclose(run(images), probabilities, atol=1e-6)


def test_an_onnx_file_says_what_its_classes_are(tmp_path):
    path, _ = written("onnx", tiny(NAMES), tmp_path)
    import onnx

    model = onnx.load(path)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["class_names"]) == list(NAMES)
    (given,) = model.graph.input
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_file_of_tensorflow_lite_is_an_archive_with_its_classes(tmp_path):
    path, _ = written("tflite", tiny(NAMES), tmp_path)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)


def test_the_same_network_gives_the_same_bytes():
    for name in ("safetensors", "onnx"):
        entry = formats.FORMATS[name]
        for module in entry.packages:
            pytest.importorskip(module, reason="pip install 'kd_jax[export]'")
        family = FAMILIES[entry.family]
        content = [family.content(golden("resnet8"), "logits") for _ in range(2)]
        assert content[0] == content[1]


def test_norms_are_part_of_convolutions_and_activations_are_single_operations():
    source = golden("mobilenet_v3_small", GOLDEN["mobilenet_v3_small"])
    ops = [node.op for node in graph.in_order(graph_rules.of_network(source, "logits"))]
    assert ops.count("affine") == 1  # the normalisation of the pixels
    assert ops.count("conv") == 34 + 2 * 9
    assert {"hard_swish", "hard_sigmoid", "relu", "mean"} < set(ops)
    assert not {"sub", "div", "max", "min", "sum", "rsqrt"} & set(ops)


class Summed(nn.Module):
    """Has an operation that no network of the zoo has."""

    num_classes: int
    axis_name: str | None = None
    dtype: Any = None
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        return nn.Dense(self.num_classes, name="fc")(jax.lax.cumsum(x, 1).mean((1, 2)))


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_an_operation_that_is_not_known_is_refused_by_its_name(name, tmp_path):
    with patched_zoo(summed=Summed):
        network = models.build("summed", 100, (0.5,) * 3, (0.25,) * 3)
        source = of_network(network, network.init(0, SHAPE))
        with pytest.raises(UserError, match=r"operation cumsum.*--format=stablehlo"):
            written(name, source, tmp_path)
        images = noise(3).images
        assert_near(written("stablehlo", source, tmp_path)[1](images), expected(source, images))
