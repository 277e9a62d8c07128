"""BiT: equal to its definition in NumPy, imported exactly, and trained at small size."""

import functools
import re
import zlib

import flax.traverse_util
import jax
import numpy as np
import pytest

from config_files import load as load_config
from helpers import patched_zoo
from image_folders import make_folder
from kd_jax import models
from kd_jax.kernels import lowering as lowering_lib
from kd_jax.models.bit import BiT
from kd_jax.runtime.atomic_files import read_json, read_json_lines
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.teachers import load
from kd_jax.training.train import train
from kd_jax.weights import name_maps, saved_network, torch_import
from tiny_runs import StopAfter

TINY = functools.partial(BiT, (2, 1, 1, 1), 0.5)
SHAPE = (64, 64, 3)
LAYOUTS = {
    "tensorflow": name_maps.BIT_TENSORFLOW,
    "big_vision": name_maps.BIT_BIG_VISION,
    "pytorch": name_maps.PYTORCH,
}


@pytest.fixture
def tiny():
    """A small member of the family, in the zoo."""
    with patched_zoo(bit_tiny=TINY):
        yield models.build("bit_tiny", 5, (0.0,) * 3, (1.0,) * 3)


def random_arrays(network):
    """Weights under the published names, each from its own name."""
    arrays = {}
    for path, shape in models.flat_shapes(network, SHAPE).items():
        key = name_maps.BIT_TENSORFLOW.key(path)
        values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        values = 1 + 0.3 * values if key.endswith("gamma") else values
        values = 0.3 * values if key.endswith(("beta", "bias")) else values
        arrays[key] = values.astype(np.float32)
    return arrays


class Reference:
    """The network as the paper tells it, in float64; arrays by their published names."""

    def __init__(self, arrays):
        self.arrays = {key: value.astype(np.float64) for key, value in arrays.items()}

    def conv(self, x, key, stride=1):
        kernel = self.arrays[f"{key}/standardized_conv2d/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
        taps = kernel.shape[0]
        border = (taps - 1) // 2
        padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
        height, width = (-(-size // stride) for size in x.shape[1:3])
        out = 0
        for i in range(taps):
            for j in range(taps):
                seen = padded[:, i : i + height * stride : stride, j : j + width * stride : stride]
                out = out + seen[:, :height, :width] @ kernel[i, j]
        return out

    def norm_relu(self, x, key):
        groups = x.reshape(*x.shape[:3], 32, -1)
        mean, var = (f((1, 2, 4), keepdims=True) for f in (groups.mean, groups.var))
        normed = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
        gamma, beta = (self.arrays[f"{key}/group_norm/{name}"] for name in ("gamma", "beta"))
        return np.maximum(normed * gamma + beta, 0)

    def logits(self, x, units):
        x = self.conv(x.astype(np.float64), "resnet/root_block", 2)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = ((size + 1) // 2 for size in x.shape[1:3])
        windows = [
            padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2][:, :height, :width]
            for i in range(3)
            for j in range(3)
        ]
        x = np.max(windows, axis=0)
        for block, count in enumerate(units, 1):
            for unit in range(1, count + 1):
                key = f"resnet/block{block}/unit{unit:02d}"
                stride = 2 if block > 1 and unit == 1 else 1
                y = self.norm_relu(x, f"{key}/a")
                if unit == 1:
                    x = self.conv(y, f"{key}/a/proj", stride)
                y = self.conv(y, f"{key}/a")
                y = self.conv(self.norm_relu(y, f"{key}/b"), f"{key}/b", stride)
                x = x + self.conv(self.norm_relu(y, f"{key}/c"), f"{key}/c")
        x = self.norm_relu(x, "resnet").mean((1, 2))
        kernel, bias = (self.arrays[f"resnet/head/conv2d/{name}"] for name in ("kernel", "bias"))
        return x @ kernel[0, 0] + bias


def run_quickly(function, *arguments):
    """Compile quickly, not well."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


@pytest.mark.parametrize(
    ("lowering", "size"), [("cpu", (64, 64)), ("cpu", (45, 70)), ("plain", (45, 70))]
)
def test_logits_equal_the_definition(lowering, size, tiny):
    arrays = random_arrays(tiny)
    variables = torch_import.from_state_dict(tiny, arrays, SHAPE)
    images = np.random.default_rng(0).standard_normal((3, *size, 3)).astype(np.float32)
    expected = Reference(arrays).logits(images, (2, 1, 1, 1))
    with lowering_lib.forced(lowering):
        logits = run_quickly(tiny.logits, variables, images)
        trained, statistics = run_quickly(
            lambda v, x: tiny.train_logits(v, x, None), variables, images
        )
    assert np.abs(expected).max() > 1
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(trained - expected).max() <= 1e-4 * np.abs(expected).max()
    assert not jax.tree.leaves(statistics)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_exact_both_ways(name, tiny):
    variables = torch_import.from_state_dict(tiny, random_arrays(tiny), SHAPE)
    arrays = torch_import.to_state_dict(variables, LAYOUTS[name])
    assert name_maps.recognise(arrays)[0] is LAYOUTS[name]
    again = torch_import.from_state_dict(tiny, arrays, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert len(arrays) == len(models.flat_shapes(tiny, SHAPE))


PUBLISHED_KEYS = {
    "tensorflow": {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 128),
        "resnet/block1/unit01/a/group_norm/gamma": (128,),
        "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (1, 1, 128, 512),
        "resnet/block3/unit36/b/standardized_conv2d/kernel": (3, 3, 512, 512),
        "resnet/block4/unit03/c/group_norm/beta": (1024,),
        "resnet/group_norm/beta": (4096,),
        "resnet/head/conv2d/kernel": (1, 1, 4096, 1000),
        "resnet/head/conv2d/bias": (1000,),
    },
    "big_vision": {
        "root_block/conv_root/kernel": (7, 7, 3, 128),
        "block1/unit01/gn1/scale": (1, 1, 1, 128),
        "block1/unit01/conv_proj/kernel": (1, 1, 128, 512),
        "block3/unit36/conv2/kernel": (3, 3, 512, 512),
        "block4/unit03/gn3/bias": (1, 1, 1, 1024),
        "norm-pre-head/bias": (1, 1, 1, 4096),
        "head/kernel": (4096, 1000),
        "head/bias": (1000,),
    },
    "pytorch": {
        "root.conv.weight": (128, 3, 7, 7),
        "body.block1.unit01.gn1.weight": (128,),
        "body.block1.unit01.downsample.weight": (512, 128, 1, 1),
        "body.block3.unit36.conv2.weight": (512, 512, 3, 3),
        "body.block4.unit03.gn3.bias": (1024,),
        "head.gn.bias": (4096,),
        "head.conv.weight": (1000, 4096, 1, 1),
        "head.conv.bias": (1000,),
    },
}


def shapes_in_file(arch, classes, layout):
    network = models.build(arch, classes, (0.5,) * 3, (0.5,) * 3)
    shapes = models.flat_shapes(network, (224, 224, 3))
    return {layout.key(path): layout.shape(path, shape) for path, shape in shapes.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_and_shapes_are_the_published_ones(name):
    shapes = shapes_in_file("bit_r152x2", 1000, LAYOUTS[name])
    assert {key: shapes.get(key) for key in PUBLISHED_KEYS[name]} == PUBLISHED_KEYS[name]
    # Three convolutions and norms a unit, four projections, the root, the last norm, the head.
    assert len(shapes) == 50 * 3 * 3 + 4 + 1 + 2 + 2


def test_what_else_a_checkpoint_holds_is_left_out(tiny):
    arrays = random_arrays(tiny)
    expected = torch_import.from_state_dict(tiny, arrays, SHAPE)
    counter = iter(range(1000))
    numbered = {
        re.sub("standardized_conv2d", lambda _: f"standardized_conv2d_{next(counter)}", key): array
        for key, array in arrays.items()
    } | {"global_step": np.int64(5)}
    own = torch_import.to_state_dict(expected, name_maps.BIT_BIG_VISION)
    with_optimiser = {f"params/{key}": array for key, array in own.items()} | {
        f"opt/0/mu/{key}": array for key, array in own.items()
    }
    old = {f"opt/target/{key}": array for key, array in own.items()} | {
        "opt/state/step": np.int64()
    }
    for other in (numbered, with_optimiser, old):
        again = torch_import.from_state_dict(tiny, other, SHAPE)
        jax.tree.map(np.testing.assert_array_equal, again, expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_head_is_told_from_another_network(name, tiny):
    with patched_zoo("resnet8", bit_tiny=TINY):
        other = models.build("bit_tiny", 7, (0.5,) * 3, (0.5,) * 3)
        variables = torch_import.from_state_dict(other, random_arrays(other), SHAPE)
        arrays = torch_import.to_state_dict(variables, LAYOUTS[name])
        bias = rf"{LAYOUTS[name].head} has shape \(7,\), expected \(5,\)"
        with pytest.raises(
            UserError, match=f"they fit bit_tiny with 7 classes; {bias}; .*has shape"
        ):
            torch_import.from_state_dict(tiny, arrays, SHAPE)


def test_first_values_are_those_of_the_reference(tiny):
    flat = flax.traverse_util.flatten_dict(tiny.init(0, SHAPE)["params"])
    for path, values in flat.items():
        if path[-1] == "scale":
            assert (values == 1).all()
        elif path[-1] == "bias" or path[0] == "head.conv":
            assert (values == 0).all()
        else:
            fan_in = np.prod(values.shape[:-1])
            assert values.std() == pytest.approx(fan_in**-0.5, rel=0.05)


def test_a_stored_network_is_read_back_and_has_no_statistics(tmp_path, tiny):
    np.savez(tmp_path / "tiny.npz", **random_arrays(tiny))
    normalisation = ((0.5,) * 3, (0.5,) * 3)
    card, variables = load.import_file(
        "bit_tiny", tmp_path / "tiny.npz", "folder", normalisation, 5, 64
    )
    saved_network.save(tmp_path / "stored", card, variables)
    _, again = saved_network.load(tmp_path / "stored")
    assert again["batch_stats"] == variables["batch_stats"] == {}
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.proof
@patched_zoo(bit_tiny=functools.partial(BiT, (1, 1, 1, 1), 0.5))
def test_the_config_trains_at_small_size_and_resumes(tmp_path):
    """`configs/bit.py` with small networks, on 120 images of 64 pixels that are streamed."""
    network = models.build("bit_tiny", 3, (0.5,) * 3, (0.5,) * 3)
    np.savez(tmp_path / "tiny.npz", **random_arrays(network))
    card, variables = load.import_file(
        "bit_tiny", tmp_path / "tiny.npz", "folder", ((0.5,) * 3, (0.5,) * 3), 3, 64
    )
    saved_network.save(tmp_path / "teacher", card, variables)
    make_folder(tmp_path / "set", count=40, size=(80, 64))
    config = load_config("bit").get_config()
    config.teacher.arch = config.student.arch = "bit_tiny"
    config.teacher.weights = str(tmp_path / "teacher")
    config.dataset.name, config.dataset.data_dir = "folder", str(tmp_path / "set")
    config.dataset.image_size, config.dataset.val_examples = 64, 12
    config.dataset.test_split = "test"
    config.dataset.resident = "never"
    config.batch_size, config.total_steps = 8, 6
    config.log_every_steps = config.checkpoint_every_steps = 1
    config.eval_every_epochs = 1000.0
    config.student.ema_decay = 0.5
    config.num_devices = 1
    unbroken = train(config, tmp_path / "unbroken")
    with pytest.raises(StoppedError):
        train(config, tmp_path / "stopped", StopAfter(3))
    resumed = train(config, tmp_path / "stopped")
    assert resumed["test_nll"] == unbroken["test_nll"]
    files = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "stopped")
    ]
    assert files[0] == files[1]
    records = read_json_lines(tmp_path / "unbroken" / "metrics.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert np.isfinite(losses).all()
    assert read_json(tmp_path / "unbroken" / "result.json")["params"] == models.count_params(
        network, SHAPE
    )
    card, _ = saved_network.load(tmp_path / "unbroken")
    assert card.image_shape == SHAPE


@pytest.mark.slow
def test_every_parameter_gets_a_gradient(tiny):
    """But for a head of zeros, which lets none through: here it is as after a step."""
    variables = torch_import.from_state_dict(tiny, random_arrays(tiny), SHAPE)
    images = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    pull = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)

    def loss_of(params):
        logits, _ = tiny.train_logits({**variables, "params": params}, images, None)
        return (pull * jax.nn.log_softmax(logits)).sum()

    grads = run_quickly(jax.grad(loss_of), variables["params"])
    for path, grad in flax.traverse_util.flatten_dict(jax.device_get(grads)).items():
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 1e-5, path
