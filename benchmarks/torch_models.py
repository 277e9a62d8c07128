"""The study's networks in PyTorch: what the benchmark measures kd_jax against.

Written for the benchmark from the golden files' lists of keys and shapes, under whose names the
weights load; `python -m benchmarks.torch_models` compares their logits with the golden ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from kd_jax.models import mobilenetv2, mobilenetv3, vgg
from kd_jax.models.layers import round_to_multiple


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded by `(kernel - 1) // 2`."""
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """CIFAR ResNet of 6n + 2 layers."""

    def __init__(self, blocks: int, classes: int = 100):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, 3), nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            layer = []
            for block in range(blocks):
                layer.append(ResidualBlock(inputs, width, 2 if stage > 1 and block == 0 else 1))
                inputs = width
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def resnet44() -> ResNet:
    """Return the study's ResNet44."""
    return ResNet(7)


class Vgg11(nn.Module):
    """VGG11 with batch norm, for 32 x 32 images."""

    def __init__(self, classes: int = 100):
        super().__init__()
        parts: list[nn.Module] = []
        inputs = 3
        for width, count in zip(vgg.WIDTHS, vgg.STAGES[11], strict=True):
            for _ in range(count):
                parts += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)]
                parts += [nn.ReLU(inplace=True)]
                inputs = width
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        hidden = vgg.HIDDEN
        self.classifier = nn.Sequential(
            nn.Linear(512, hidden), nn.ReLU(inplace=True), nn.Identity(),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Identity(),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class V2Block(nn.Module):
    """MobileNetV2's inverted residual."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        hidden, parts = inputs * expansion, []
        if expansion != 1:
            parts.append(
                nn.Sequential(conv(inputs, hidden), nn.BatchNorm2d(hidden), nn.ReLU6(True))
            )
        parts.append(
            nn.Sequential(
                conv(hidden, hidden, 3, stride, hidden), nn.BatchNorm2d(hidden), nn.ReLU6(True)
            )
        )
        parts += [conv(hidden, outputs), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*parts)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 with CIFAR strides."""

    def __init__(self, width: float, classes: int = 100):
        super().__init__()
        inputs = round_to_multiple(mobilenetv2.STEM * width)
        parts: list[nn.Module] = [
            nn.Sequential(conv(3, inputs, 3), nn.BatchNorm2d(inputs), nn.ReLU6(True))
        ]
        for stage in mobilenetv2.STAGES:
            outputs = round_to_multiple(stage.features * width)
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                parts.append(V2Block(inputs, outputs, stage.expansion, stride))
                inputs = outputs
        last = round_to_multiple(mobilenetv2.LAST * max(1.0, width))
        parts.append(nn.Sequential(conv(inputs, last), nn.BatchNorm2d(last), nn.ReLU6(True)))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(last, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Squeeze(nn.Module):
    """Torchvision's squeeze-excite: 1x1 convolutions with biases."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = round_to_multiple(channels / 4)
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = functional.relu(self.fc1(x.mean((2, 3), keepdim=True)), inplace=True)
        return x * functional.hardsigmoid(self.fc2(scale))


class CifarSqueeze(nn.Module):
    """The CIFAR form's squeeze-excite: linear layers without biases."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = channels // 4
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias=False), nn.Hardsigmoid(inplace=True),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


def _activation(hard: bool) -> nn.Module:
    return nn.Hardswish(inplace=True) if hard else nn.ReLU(inplace=True)


class V3Block(nn.Module):
    """MobileNetV3's inverted residual, in torchvision's form."""

    def __init__(self, inputs: int, row: mobilenetv3.Row):
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
        wide, parts = row.expanded, []
        if wide != inputs:
            parts.append(nn.Sequential(conv(inputs, wide), norm(wide), _activation(row.hard)))
        depthwise = conv(wide, wide, row.kernel_size, row.stride, wide)
        parts.append(nn.Sequential(depthwise, norm(wide), _activation(row.hard)))
        parts += [Squeeze(wide)] if row.squeeze else []
        parts.append(nn.Sequential(conv(wide, row.features), norm(row.features)))
        self.block = nn.Sequential(*parts)
        self.shortcut = row.stride == 1 and inputs == row.features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.shortcut else self.block(x)


class LastNorm(nn.Module):
    """A batch norm under the name that the reference gives it where a shortcut ends."""

    def __init__(self, channels: int):
        super().__init__()
        self.lastBN = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lastBN(x)


class V3CifarBlock(nn.Module):
    """MobileNetV3's inverted residual, in the CIFAR form."""

    def __init__(self, inputs: int, row: mobilenetv3.Row):
        super().__init__()
        wide = row.expanded
        self.shortcut = row.stride == 1 and inputs == row.features
        last = LastNorm(row.features) if self.shortcut else nn.BatchNorm2d(row.features)
        filtering = [
            conv(wide, wide, row.kernel_size, row.stride, wide),
            nn.BatchNorm2d(wide),
            CifarSqueeze(wide) if row.squeeze else nn.Identity(),
            _activation(row.hard),
        ]
        projection = [conv(wide, row.features), last]
        if wide == inputs:
            self.conv1, self.conv2 = nn.Sequential(*filtering), nn.Sequential(*projection)
        else:
            expansion = [conv(inputs, wide), nn.BatchNorm2d(wide), _activation(row.hard)]
            self.conv1 = nn.Sequential(*expansion)
            self.conv2 = nn.Sequential(*filtering, *projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class MobileNetV3(nn.Module):
    """MobileNetV3-small in torchvision's form."""

    def __init__(self, classes: int = 100):
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
        parts: list[nn.Module] = [nn.Sequential(conv(3, 16, 3, 2), norm(16), _activation(True))]
        inputs = 16
        for row in mobilenetv3.SMALL:
            parts.append(V3Block(inputs, row))
            inputs = row.features
        parts.append(nn.Sequential(conv(inputs, 6 * inputs), norm(6 * inputs), _activation(True)))
        self.features = nn.Sequential(*parts)
        last = mobilenetv3.SMALL_LAST_CHANNELS
        self.classifier = nn.Sequential(
            nn.Linear(6 * inputs, last), _activation(True), nn.Identity(), nn.Linear(last, classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV3Cifar(nn.Module):
    """MobileNetV3-small in the CIFAR form."""

    def __init__(self, classes: int = 100):
        super().__init__()
        parts: list[nn.Module] = [
            nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16), _activation(True))
        ]
        inputs = 16
        for number, row in enumerate(mobilenetv3.SMALL):
            row = row._replace(stride=1) if number == 0 else row
            parts.append(V3CifarBlock(inputs, row))
            inputs = row.features
        wide, last = 6 * inputs, mobilenetv3.SMALL_LAST_CHANNELS
        parts.append(nn.Sequential(conv(inputs, wide), nn.BatchNorm2d(wide), _activation(True)))
        self.featureList = nn.Sequential(*parts)
        self.last_stage_layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(wide, last), _activation(True)
        )
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(last, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.last_stage_layers(self.featureList(x)).flatten(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: ResNet(3),
    "resnet44": lambda: ResNet(7),
    "vgg11_bn": Vgg11,
    "mobilenetv2_x0_75": lambda: MobileNetV2(0.75),
    "mobilenet_v3_small": MobileNetV3,
    "mobilenet_v3_small_cifar": MobileNetV3Cifar,
}


def check() -> None:
    """Compare every model's logits with the golden file's; print the largest difference."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from helpers import golden_images, golden_logits, golden_state_dict

    images = torch.from_numpy(golden_images()).permute(0, 3, 1, 2)
    for name, make in MODELS.items():
        golden = name + "_torchvision" if name == "mobilenet_v3_small" else name
        model = make().eval()
        weights = {k: torch.from_numpy(v) for k, v in golden_state_dict(golden).items()}
        model.load_state_dict(weights)
        expected = torch.from_numpy(golden_logits(golden))
        with torch.inference_mode():
            off = (model(images) - expected).abs().max() / expected.abs().max()
        print(f"{name}: off by {off:.1e} of the largest logit")
        if off > 1e-4:
            raise SystemExit(f"{name} is not the reference network")


if __name__ == "__main__":
    check()
