"""Published weights of other projects: their accuracy, their addresses, and the download.

Source of every name and accuracy: the README of chenyaofo/pytorch-cifar-models. The name of a file
ends with the first eight hex digits of its sha256. That is all the publisher states, and 32 bits
are few: so the full digest of the first download that has these digits is kept in the cache, and
every later use of the file must have the same one.

The download does not use pooch: pooch checks only a digest that is known in full, so a wrong first
download would get its final name before its digest could be compared.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import re
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
      release: tag of the GitHub release.
      sha256: first eight hex digits of the digest of the file.
      top1, top5: accuracy on the test split in percent, as published.
    """

    release: str
    sha256: str
    top1: float
    top5: float


_RESNET, _VGG, _MOBILENETV2 = "resnet", "vgg", "mobilenetv2"
_CIFAR_MODELS, _SHOWLO = "chenyaofo/pytorch-cifar-models", "ShowLo/MobileNetV3"
_BIT = "none of this size: small ones, a definition in NumPy"
# Architecture -> project whose network has the same outputs with the same weights. The outputs that
# are compared are in tests/golden.
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
# Top-1 and top-5 in percent, measured by this project on all 10,000 test images with the published
# weights. Where the weights are available, `tests/teachers/test_teachers.py` measures them again.
CERTIFIED = {
    ("cifar100", "resnet20"): (68.83, 91.01),
    ("cifar100", "resnet44"): (71.63, 91.58),
}


def find(arch: str, dataset: str) -> Published:
    """Return the entry of an architecture and a data set in `TABLE`.

    Raises:
      UserError: there is none.
    """
    if (dataset, arch) not in TABLE:
        names = ", ".join(name for dataset_name, name in TABLE if dataset_name == dataset) or "none"
        raise UserError(
            f"no published weights of {arch} for {dataset} are known, only of: {names}; give "
            f"--src a file, or train it with configs/teacher.py:{arch}"
        )
    return TABLE[dataset, arch]


def fetch(arch: str, dataset: str, releases: str = RELEASES) -> Path:
    """Return the path of a published file in the cache; download it if it is not there.

    The digest is compared before a downloaded file is written, and at every later call. Several
    processes may fetch one file at once: each replaces it with the same content.

    Args:
      arch, dataset: a key of `TABLE`.
      releases: address below which the file is `TAG/NAME`.

    Raises:
      UserError: `TABLE` has no entry, the file cannot be fetched or written, or its digest is not
        the expected one.
    """
    entry = find(arch, dataset)
    name = f"{dataset}_{arch}-{entry.sha256}.pt"
    url, path = f"{releases}/{entry.release}/{name}", caches.directory("published") / name
    record = caches.directory("published_sha256") / f"{name}.sha256"
    first_digest = _read_record(record)
    if path.exists():
        digest = atomic_files.sha256_of(path)
        _check_digest(digest, entry, first_digest, record, str(path), f"remove it, and fetch {url}")
    else:
        content = _download(url, path)
        digest = hashlib.sha256(content).hexdigest()
        _check_digest(digest, entry, first_digest, record, f"what came from {url}", "fetch it")
        atomic_files.write_whole(path, content)
    if first_digest is None:
        _write_record(record, digest, name)
    return path


def _download(url: str, path: Path) -> bytes:
    """Return the content at an address; `path` is where an error says to put the file."""
    content = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            size = getattr(response, "length", None)  # only HTTP says it, and not always
            logger.info("fetching %s%s", url, f" ({size / 1e6:.1f} MB)" if size else "")
            shutil.copyfileobj(response, content)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{url} cannot be fetched ({reason}): fetch it where there is a network, and put "
            f"it at {path}, or give the file itself as --src"
        ) from None
    return content.getvalue()


def _check_digest(
    digest: str, entry: Published, first_digest: str | None, record: Path, subject: str, remedy: str
) -> None:
    """Raise `UserError` unless a digest begins as published and is the recorded one, if any."""
    if not digest.startswith(entry.sha256):
        raise UserError(
            f"{subject} has a sha256 that begins with {digest[:8]}, expected {entry.sha256}: it is "
            f"cut short or another file; {remedy} again"
        )
    if first_digest not in (None, digest):
        raise UserError(
            f"{subject} has the sha256 {digest}, expected {first_digest}, the one of the first "
            f"download (kept in {record}): it is another file with the same first digits; {remedy} "
            "again from a network that you trust"
        )


def _read_record(record: Path) -> str | None:
    """Return the full digest of the first download; None if there is no record."""
    try:
        digest = record.read_text(errors="replace").split(" ")[0]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{record} cannot be read ({error.strerror}): make it readable") from None
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(
            f"{record} does not begin with a sha256, expected 64 hex digits: remove it, and the "
            "next use of the file makes it anew"
        )
    return digest


def _write_record(record: Path, digest: str, name: str) -> None:
    """Keep a digest, in the format of sha256sum. In a read-only cache, go on without it."""
    try:
        atomic_files.write_whole(record, f"{digest}  {name}\n".encode())
    except UserError as error:
        logger.warning("the sha256 of %s is not kept for its next use: %s", name, error)
