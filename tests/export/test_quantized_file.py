"""An int8 file of a student that was trained for it has the student's integers, layer by layer."""

import collections
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import patched_zoo
from kd_jax import models
from kd_jax.distillation import augment
from kd_jax.export import function, latency, request, runtimes, source, tflite_file
from kd_jax.export.request import Request
from kd_jax.models import layers, quantize
from kd_jax.models.norm import batch_norm
from kd_jax.runtime.atomic_files import read_json
from kd_jax.runtime.errors import UserError
from kd_jax.training.train import train
from networks import GOLDEN, SHAPE, golden, noise, of_network
from tiny_runs import Tiny, digits_config


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(latency, "_FEWEST", 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small student of the embedded digits, its last third trained for int8."""
    pytest.importorskip("tensorflow", reason="pip install 'kd_jax[export]'")
    place = tmp_path_factory.mktemp("runs") / "trained"
    config = digits_config(1)
    config.learning_rate, config.mixup.kind, config.total_steps = 3e-3, "none", 60
    config.student.quantize, config.student.quantize_share = "int8", 0.33
    train(config, place)
    return place


def as_if_trained(floats):
    """Return a network as if it had been trained for int8, with ranges of noise."""
    network = dataclasses.replace(floats.network, quantized=True)
    variables = network.with_ranges(floats.variables, SHAPE)
    pixels = augment.to_pixels(jnp.asarray(noise(64).images))
    step = jax.jit(lambda variables: network.train_logits(variables, pixels, None))
    _, statistics = step(variables)
    running = network.average_statistics(variables["batch_stats"], statistics, None)
    variables = jax.device_get({"params": variables["params"], "batch_stats": running})
    card = dataclasses.replace(floats.card, quantize="int8")
    return dataclasses.replace(floats, card=card, variables=variables)


def sites_of(network_source, images, monkeypatch):
    """Return what the student rounds, in order: `(step, zero point as int8, values in steps)`."""
    found = []
    within = quantize.within

    def record(x, ends):
        y = within(x, ends)
        step, least, _ = map(float, quantize.grid(np.asarray(ends, np.float32)))
        found.append((step, int(-128 - least), np.rint(np.asarray(y) / step).astype(int)))
        return y

    with monkeypatch.context() as patch:
        patch.setattr(quantize, "within", record)
        pixels = augment.to_pixels(jnp.asarray(images))
        network_source.network.logits(network_source.variables, pixels)
    return found


def opened(content, images):
    """Run a file, all results kept; return its interpreter."""
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="runs TensorFlow Lite")
    # Without its delegate, which does several operations at once, nothing between them is lost.
    plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = litert.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=plain,
    )
    (given,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images)
    interpreter.invoke()
    return interpreter


def differences(sites, interpreter):
    """Return for each site by how many steps the file's values differ: float `[values]`.

    A result of the file is found by its step, its zero point and its size. Gates of squeeze-excite
    share all three: of several the nearest is taken, for one site only.
    """
    results = collections.defaultdict(list)
    for tensor in interpreter.get_tensor_details():
        scale, zero_point = tensor["quantization"]
        if scale:
            values = interpreter.get_tensor(tensor["index"]).astype(int).reshape(-1)
            results[(f"{scale:.4g}", zero_point, values.size)].append(values - zero_point)
    nearest = []
    for step, zero_point, values in sites:
        candidates = results[(f"{step:.4g}", zero_point, values.size)]
        steps = [np.abs(one - values.reshape(-1)) for one in candidates]
        chosen = int(np.argmin([np.mean(one) for one in steps]))
        nearest.append(steps[chosen])
        del candidates[chosen]
    return nearest


def is_all_int8(interpreter):
    dtypes = {tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    floats = [t["name"] for t in interpreter.get_tensor_details() if t["dtype"] == np.float32]
    return dtypes <= {np.uint8, np.int8, np.int32, np.float32} and len(floats) == 1  # the outputs


def test_the_file_of_a_trained_student_has_its_numbers(trained, monkeypatch):
    student = source.read(trained, None, None)
    assert student.is_quantized
    images = student.dataset.test.images[:100]
    content = tflite_file.content(student, "logits", "int8")
    interpreter = opened(content, images)
    assert is_all_int8(interpreter)
    sites = sites_of(student, images, monkeypatch)
    assert len(sites) == 8
    by_site = differences(sites, interpreter)
    assert by_site[0].max() == 0  # the pixels
    for steps in by_site:
        assert steps.max() <= 3
        assert np.mean(steps == 0) > 0.8
    logits = function.student_logits(student.network, student.variables, images)
    answers = runtimes.opened("tflite", content, 1).call(images)
    assert np.abs(answers - logits).max() <= 3.01 * sites[-1][0]
    assert np.mean(answers.argmax(-1) == logits.argmax(-1)) >= 0.97
    assert_has_weights(interpreter, student.variables["params"])


def assert_has_weights(interpreter, params):
    stored = [interpreter.get_tensor(tensor["index"]).reshape(-1)
              for tensor in interpreter.get_tensor_details()
              if len(tensor["quantization_parameters"]["scales"]) > 1
              and tensor["dtype"] == np.int8]  # fmt: skip
    for layer in (params["conv1"], params["layer1.0"]["conv1"], params["fc"]):
        kernel = layer["kernel"]
        scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
        integers = np.moveaxis(np.rint(kernel / scale).astype(int), -1, 0)
        # A factor of batch norm that is negative turns the signs of its channel.
        same = [one for one in stored if one.size == integers.size
                and np.array_equal(np.abs(one), np.abs(integers).reshape(-1))]  # fmt: skip
        assert len(same) == 1


@pytest.mark.proof
def test_the_card_has_both_accuracies_and_other_formats_are_in_floats(trained, tmp_path):
    cards = {}
    for name in ("tflite-int8", "stablehlo"):
        request.carry_out(Request(trained, name, tmp_path / name, images=100))
        cards[name] = read_json(tmp_path / f"{name}.card.json")
    ints, floats = cards["tflite-int8"], cards["stablehlo"]
    assert ints["quantisation"]["ranges"] == "trained"
    assert floats["quantisation"] is None
    assert ints["measures"]["float_top1"] == floats["measures"]["network_top1"]
    assert floats["measures"]["largest_difference"] < 1e-4
    assert abs(ints["measures"]["top1"] - ints["measures"]["network_top1"]) <= 2
    assert any("trained with int8's numbers" in limit for limit in floats["limits"])


class Forgetful(Tiny):
    """Means without a range, in a network whose layers all have one."""

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        norm = batch_norm(train, self.axis_name, self.dtype)
        x = norm(name="bn1", activation="relu")(layers.Conv(8, 3, 2, name="conv1")(x))
        return layers.Dense(self.num_classes, name="fc")(jnp.tanh(x).mean((1, 2)))


@pytest.mark.proof
def test_a_result_without_a_range_is_refused():
    pytest.importorskip("tensorflow", reason="pip install 'kd_jax[export]'")
    with patched_zoo(forgetful=Forgetful):
        network = models.build("forgetful", 100, (0.5,) * 3, (0.25,) * 3)
        network.check_quantized(SHAPE)
        student = as_if_trained(of_network(network, network.init(0, SHAPE)))
        with pytest.raises(UserError, match="forgetful has a result without a range"):
            tflite_file.content(student, "logits", "int8")


@pytest.mark.proof
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
@pytest.mark.parametrize("arch", GOLDEN)
def test_the_files_of_every_family_have_the_students_numbers(arch, outputs, monkeypatch):
    """Of random weights. One integer more or less at each layer adds up on the way."""
    pytest.importorskip("tensorflow", reason="pip install 'kd_jax[export]'")
    student, images = as_if_trained(golden(arch, GOLDEN[arch])), noise(8, seed=1).images
    interpreter = opened(tflite_file.content(student, outputs, "int8"), images)
    assert outputs == "probabilities" or is_all_int8(interpreter)
    by_site = differences(sites_of(student, images, monkeypatch), interpreter)
    assert by_site[0].max() == 0
    assert by_site[1].max() <= 1
    assert max(np.mean(steps) for steps in by_site) < 2
    assert by_site[-1].max() <= 10
