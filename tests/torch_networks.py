"""Networks in PyTorch that tests name by `torch:torch_networks:FACTORY`."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut, under the names of the published CIFAR ResNets."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """CIFAR ResNet of 6n + 2 layers."""

    def __init__(self, n, classes=100):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inputs, stages = 16, []
        for width in (16, 32, 64):
            blocks = [Block(inputs, width, 1 if inputs == width else 2)]
            blocks += [Block(width, width, 1) for _ in range(n - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet44():
    return ResNet(7)


def resnet56():
    return ResNet(9)


class Small(nn.Module):
    """A network that is in no zoo: ten classes, its own stem, group norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, 2, 2)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(functional.silu(self.norm(self.stem(x))).amax((2, 3)))


def small():
    torch.manual_seed(0)
    return Small()


def broken():
    raise RuntimeError("no such checkpoint")


def no_module():
    return np.zeros(3)
