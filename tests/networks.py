"""Networks to export: golden weights with a data set of noise, and answers to compare with."""

import numpy as np

from helpers import golden_state_dict
from kd_jax import models
from kd_jax.data.dataset import DataSet
from kd_jax.data.splits import Split
from kd_jax.export import source
from kd_jax.weights import saved_network, torch_import

SHAPE = (32, 32, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
# One network of each family, and its golden weights; larger ones have the same operations.
GOLDEN = {
    "resnet8": "resnet8",
    "vgg11_bn": "vgg11_bn",
    "mobilenetv2_x0_5": "mobilenetv2_x0_5",
    "mobilenet_v3_small": "mobilenet_v3_small_torchvision",
    "mobilenet_v3_small_cifar": "mobilenet_v3_small_cifar",
}


def noise(count, seed=0):
    """Return random images and labels of 100 classes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *SHAPE), np.uint8)
    return Split(images, rng.integers(0, 100, count).astype(np.int32))


def of_network(network, variables, names=None):
    """Return a network of 100 classes as what is exported, with noise for data."""
    card = saved_network.ModelCard(
        network.arch, network.num_classes, SHAPE, network.mean, network.std, "cifar100", None,
        "a test", "0", class_names=names,
    )  # fmt: skip
    train, test = noise(64), noise(40, seed=1)
    data = DataSet("cifar100", train, train, test, network.num_classes, MEAN, STD, "noise")
    return source.Source(card, variables, data, tuple(range(network.num_classes)), None, None)


def golden(arch, file=None):
    """Return a network of the zoo with the golden weights as what is exported."""
    network = models.build(arch, 100, MEAN, STD)
    state_dict = golden_state_dict(file or arch)
    return of_network(network, torch_import.from_state_dict(network, state_dict, SHAPE))
