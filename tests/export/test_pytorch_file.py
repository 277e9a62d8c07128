"""Weights in PyTorch's layout: what was imported comes out again, array by array."""

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from helpers import golden_images, golden_logits, golden_state_dict, patched_zoo
from kd_jax import models
from kd_jax.export import pytorch_file
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import load
from kd_jax.weights import published, torch_file, torch_import
from networks import SHAPE, golden, of_network
from tiny_runs import Tiny

GOLDEN = {
    "resnet44": "resnet44",
    "vgg11_bn": "vgg11_bn",
    "mobilenetv2_x0_75": "mobilenetv2_x0_75",
    "mobilenet_v3_small": "mobilenet_v3_small_torchvision",
    "mobilenet_v3_small_cifar": "mobilenet_v3_small_cifar",
}


def assert_same_arrays(exported, original):
    assert exported.keys() == original.keys()
    for name, array in original.items():
        assert exported[name].shape == np.shape(array), name
        if name.endswith("num_batches_tracked"):
            assert exported[name].dtype == np.int64  # as PyTorch has it; its value is not imported
        else:
            np.testing.assert_array_equal(exported[name], array)


@pytest.mark.parametrize("arch", GOLDEN)
def test_import_and_export_give_the_very_arrays(arch):
    content = pytorch_file.content(golden(arch, GOLDEN[arch]), "logits")
    assert_same_arrays(safetensors.numpy.load(content), golden_state_dict(GOLDEN[arch]))


def test_the_arrays_of_a_real_network_come_out_again(teacher_dir):
    path = teacher_dir / "cifar100_resnet44.pth"
    card, variables = load.import_file("resnet44", path, "cifar100")
    content = pytorch_file.content(of_network(card.network(), variables), "logits")
    assert_same_arrays(safetensors.numpy.load(content), torch_file.read_state_dict(path))


def test_a_file_gives_the_golden_logits(tmp_path):
    path = tmp_path / "x.safetensors"
    source = golden("mobilenet_v3_small", GOLDEN["mobilenet_v3_small"])
    path.write_bytes(pytorch_file.content(source, "logits"))
    network = models.build("mobilenet_v3_small", 100, (0.0,) * 3, (1.0,) * 3)
    arrays = safetensors.numpy.load_file(path)
    variables = torch_import.from_state_dict(network, arrays, SHAPE)
    logits = jax.jit(network.logits)(variables, golden_images())
    expected = golden_logits(GOLDEN["mobilenet_v3_small"])
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_file_says_how_to_normalise_and_what_its_classes_are(tmp_path):
    names = tuple(f"class {number}" for number in range(100))
    source = golden("resnet8")
    path = tmp_path / "x.safetensors"
    named = of_network(source.network, source.variables, names)
    path.write_bytes(pytorch_file.content(named, "logits"))
    with safetensors.safe_open(path, "numpy") as file:
        texts = file.metadata()
    assert texts["mean"] == "[0.5, 0.4, 0.3]"
    assert texts["project"] == published.REFERENCES["resnet8"]
    assert '"class 99"' in texts["class_names"]


def test_a_network_whose_names_are_of_no_pytorch_network_is_refused():
    with patched_zoo(tiny=Tiny):
        network = models.build("tiny", 100, (0.5,) * 3, (0.25,) * 3)
        source = of_network(network, network.init(0, SHAPE))
        with pytest.raises(UserError, match=r"tiny's arrays are not known .*mobilenet_v3_small"):
            pytorch_file.content(source, "logits")


def test_pytorch_reads_the_file(tmp_path):
    """Names, shapes and values, as PyTorch's own modules of these layers take them: strictly."""
    torch = pytest.importorskip("torch", reason="pip install torch to load the file with it")
    from safetensors.torch import load_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(pytorch_file.content(golden("resnet8"), "logits"))
    stem = torch.nn.Module()
    stem.conv1, stem.bn1 = torch.nn.Conv2d(3, 16, 3, bias=False), torch.nn.BatchNorm2d(16)
    arrays = {k: v for k, v in load_file(path).items() if k.startswith(("conv1.", "bn1."))}
    stem.load_state_dict(arrays, strict=True)
    kernel = golden_state_dict("resnet8")["conv1.weight"]
    np.testing.assert_array_equal(stem.conv1.weight.detach(), kernel)


# Howard et al. 2019, table 2: kernel, expanded, out, squeeze-excite, hard swish, stride.
TABLE_2 = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip


def mobilenet_v3_small(torch, num_classes):
    """Return a PyTorch module with the names and the function of torchvision's class."""
    nn = torch.nn

    class SqueezeExcite(nn.Module):
        def __init__(self, width):
            super().__init__()
            hidden = max(8, (width // 4 + 4) // 8 * 8)  # a quarter, in eights
            hidden += 8 * (hidden < 0.9 * width / 4)
            self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

        def forward(self, x):
            pooled = x.mean((2, 3), keepdim=True)
            return x * nn.functional.hardsigmoid(self.fc2(self.fc1(pooled).relu()))

    def convolution(inputs, outputs, size, stride=1, groups=1, activation=None):
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(outputs, eps=1e-3)
        return nn.Sequential(conv, norm, *([activation()] if activation else []))

    class Residual(nn.Module):
        def __init__(self, inputs, size, expanded, outputs, squeeze, hard, stride):
            super().__init__()
            activation = nn.Hardswish if hard else nn.ReLU
            parts = []
            if expanded != inputs:
                parts.append(convolution(inputs, expanded, 1, activation=activation))
            parts.append(convolution(expanded, expanded, size, stride, expanded, activation))
            if squeeze:
                parts.append(SqueezeExcite(expanded))
            parts.append(convolution(expanded, outputs, 1))
            self.block = nn.Sequential(*parts)
            self.is_residual = stride == 1 and inputs == outputs

        def forward(self, x):
            return x + self.block(x) if self.is_residual else self.block(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            layers, width = [convolution(3, 16, 3, 2, activation=nn.Hardswish)], 16
            for row in TABLE_2:
                layers.append(Residual(width, *row))
                width = row[2]
            layers.append(convolution(width, 576, 1, activation=nn.Hardswish))
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(
                nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, num_classes)
            )

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    return Network().eval()


def test_torchvisions_class_gives_the_golden_logits(tmp_path):
    """A PyTorch user loads the file, strictly, and has the answers of the reference."""
    torch = pytest.importorskip("torch", reason="pip install torch to load the file with it")
    from safetensors.torch import load_file

    path = tmp_path / "x.safetensors"
    source = golden("mobilenet_v3_small", GOLDEN["mobilenet_v3_small"])
    path.write_bytes(pytorch_file.content(source, "logits"))
    try:
        from torchvision.models import mobilenet_v3_small as original
    except ImportError:
        network = mobilenet_v3_small(torch, num_classes=100)
    else:
        network = original(num_classes=100).eval()
    network.load_state_dict(load_file(path), strict=True)
    with torch.inference_mode():
        logits = network(torch.from_numpy(golden_images().transpose(0, 3, 1, 2))).numpy()
    expected = golden_logits(GOLDEN["mobilenet_v3_small"])
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
