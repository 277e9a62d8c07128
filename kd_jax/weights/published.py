"""Networks that others have trained and published: their accuracy, and where their files are.

Source of every name and figure: the README of chenyaofo/pytorch-cifar-models. The eight hex digits
in a file's name are the first of its sha256.
"""

from __future__ import annotations

import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from kd_jax.runtime import atomic_files, caches
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

RELEASES = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download"
_TIMEOUT_SECONDS = 30.0


class Published(NamedTuple):
    """One published file.

    Attributes:
      release: the release's tag.
      sha256: the first eight digits.
      top1, top5: percent on the test split, as published.
    """

    release: str
    sha256: str
    top1: float
    top5: float


_RESNET, _VGG, _MOBILENETV2 = "resnet", "vgg", "mobilenetv2"
_CIFAR_MODELS, _SHOWLO = "chenyaofo/pytorch-cifar-models", "ShowLo/MobileNetV3"
_BIT = "none of this size: small ones, a definition in NumPy"
# Whose outputs each network of the zoo gives, with the same weights: tests/golden holds them.
REFERENCES = {
    **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet44", "resnet56"), _CIFAR_MODELS),
    **dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"), _CIFAR_MODELS),
    **{f"mobilenetv2_x{width}": _CIFAR_MODELS for width in ("0_5", "0_75", "1_0", "1_4")},
    **dict.fromkeys(("mobilenet_v3_small", "mobilenet_v3_large"), "torchvision"),
    **dict.fromkeys(("mobilenet_v3_small_cifar", "mobilenet_v3_large_cifar"), _SHOWLO),
    **dict.fromkeys(("bit_r50x1", "bit_r101x1", "bit_r152x2"), _BIT),
}
TABLE = {
    ("cifar100", "resnet20"): Published(_RESNET, "23dac2f1", 68.83, 91.01),
    ("cifar100", "resnet32"): Published(_RESNET, "84213ce6", 70.16, 90.89),
    ("cifar100", "resnet44"): Published(_RESNET, "ffe32858", 71.63, 91.58),
    ("cifar100", "resnet56"): Published(_RESNET, "f2eff4c8", 72.63, 91.94),
    ("cifar100", "vgg11_bn"): Published(_VGG, "57d0759e", 70.78, 88.87),
    ("cifar100", "vgg13_bn"): Published(_VGG, "5ebe5778", 74.63, 91.09),
    ("cifar100", "vgg16_bn"): Published(_VGG, "7d8c4031", 74.00, 90.56),
    ("cifar100", "vgg19_bn"): Published(_VGG, "b98f7bd7", 73.87, 90.13),
    ("cifar100", "mobilenetv2_x0_5"): Published(_MOBILENETV2, "9f915757", 70.88, 91.72),
    ("cifar100", "mobilenetv2_x0_75"): Published(_MOBILENETV2, "d7891e60", 73.61, 92.61),
    ("cifar100", "mobilenetv2_x1_0"): Published(_MOBILENETV2, "1311f9ff", 74.20, 92.82),
    ("cifar100", "mobilenetv2_x1_4"): Published(_MOBILENETV2, "8a269f5e", 75.98, 93.44),
    ("cifar10", "resnet20"): Published(_RESNET, "4118986f", 92.60, 99.81),
    ("cifar10", "resnet32"): Published(_RESNET, "ef93fc4d", 93.53, 99.77),
    ("cifar10", "resnet44"): Published(_RESNET, "2a3cabcb", 94.01, 99.77),
    ("cifar10", "resnet56"): Published(_RESNET, "187c023a", 94.37, 99.83),
    ("cifar10", "vgg11_bn"): Published(_VGG, "eaeebf42", 92.79, 99.72),
    ("cifar10", "vgg13_bn"): Published(_VGG, "c01e4a43", 94.00, 99.77),
    ("cifar10", "vgg16_bn"): Published(_VGG, "6ee7ea24", 94.16, 99.71),
    ("cifar10", "vgg19_bn"): Published(_VGG, "57191229", 93.91, 99.64),
    ("cifar10", "mobilenetv2_x0_5"): Published(_MOBILENETV2, "ca14ced9", 92.88, 99.86),
    ("cifar10", "mobilenetv2_x0_75"): Published(_MOBILENETV2, "a53c314e", 93.72, 99.79),
    ("cifar10", "mobilenetv2_x1_0"): Published(_MOBILENETV2, "fe6a5b48", 93.79, 99.73),
    ("cifar10", "mobilenetv2_x1_4"): Published(_MOBILENETV2, "3bbbd6e2", 94.22, 99.80),
}
# Top-1 and top-5 that this project measured itself on all 10,000 test images with the published
# weights; `tests/teachers/test_teachers.py` measures them again wherever the weights are at hand.
CERTIFIED = {
    ("cifar100", "resnet20"): (68.83, 91.01),
    ("cifar100", "resnet44"): (71.63, 91.58),
}


def find(arch: str, dataset: str) -> Published:
    """Return the published file of an architecture.

    Raises:
      UserError: nobody we know of publishes one.
    """
    if (dataset, arch) not in TABLE:
        known = ", ".join(name for of, name in TABLE if of == dataset) or "none"
        raise UserError(
            f"no published weights of {arch} for {dataset} are known, only of: {known}; give "
            f"--src a file, or train it with configs/teacher.py:{arch}"
        )
    return TABLE[dataset, arch]


def fetch(arch: str, dataset: str, releases: str = RELEASES) -> Path:
    """Return the local path of a published file, downloaded if it is not there yet.

    Args:
      arch, dataset: a key of `TABLE`.
      releases: address below which the file is `TAG/NAME`.

    Raises:
      UserError: nothing is published, it cannot be fetched, or it is not the file that it should
        be.
    """
    entry = find(arch, dataset)
    name = f"{dataset}_{arch}-{entry.sha256}.pt"
    url, path = f"{releases}/{entry.release}/{name}", caches.directory("published") / name
    if not path.exists():
        logger.info("fetching %s", url)
        try:
            with (
                urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
                atomic_files.replacing(path) as file,
            ):
                shutil.copyfileobj(response, file)
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{url} cannot be fetched ({reason}): fetch it where there is a network, and put "
                f"it at {path}, or give the file itself as --src"
            ) from None
    digest = atomic_files.sha256_of(path)
    if not digest.startswith(entry.sha256):
        raise UserError(
            f"{path} has a sha256 that begins with {digest[:8]}, expected {entry.sha256}: it is "
            f"cut short or another file; remove it, and fetch {url} again"
        )
    return path
