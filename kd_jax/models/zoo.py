"""The zoo: every architecture by name, how its module is made, and what it costs.

Imports neither JAX nor Flax, so that help texts, checks of a config and tables are instant.
Published accuracies of these networks are in `kd_jax.weights.published`.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

from kd_jax.runtime.errors import UserError

PYTHON = "python:"  # begins the name of a module that was given as an object
IMAGE_SHAPE = (32, 32, 3)  # of the image that `Cost` is of


class Cost(NamedTuple):
    """Cost of one forward pass of one image of `IMAGE_SHAPE`.

    `tests/models/test_zoo.py` compares these numbers with those counted from the traced program.

    Attributes:
      params: parameters before the head.
      madds: multiply-adds of the convolutions and linear layers before the head.
      features: inputs of the head, which is linear with a bias.
      flattened: parameters that read one pixel of the last map, where the network flattens it
        instead of averaging; its map is a 32nd of the image each way.
    """

    params: int
    madds: int
    features: int
    flattened: int = 0

    @overload
    def total_params(self, num_classes: int) -> int: ...
    @overload
    def total_params(self, num_classes: int, image_size: int) -> int | None: ...
    def total_params(self, num_classes: int, image_size: int = IMAGE_SHAPE[0]) -> int | None:
        """Return the number of parameters with a head of `num_classes`.

        None where nothing is left of an image of this height and width.
        """
        pixels = (image_size // 32) ** 2 if self.flattened else 1
        if not pixels:
            return None
        return self.params + (pixels - 1) * self.flattened + (self.features + 1) * num_classes

    def total_madds(self, num_classes: int) -> int:
        """Return the number of multiply-adds with a head of `num_classes`."""
        return self.madds + self.features * num_classes


class Architecture(NamedTuple):
    """An entry of the zoo.

    Attributes:
      module: what makes the Flax module: `"package.module:callable"`, imported at first use, or
        the callable itself.
      arguments: keyword arguments that distinguish the members of a family.
      cost: of one image of `IMAGE_SHAPE`.
    """

    module: str | Callable[..., Any]
    arguments: Mapping[str, Any]
    cost: Cost


def _resnet(blocks_per_stage: int, cost: Cost) -> Architecture:
    arguments = {"blocks_per_stage": blocks_per_stage}
    return Architecture("kd_jax.models.resnet:ResNet", arguments, cost)


def _vgg(depth: int, cost: Cost) -> Architecture:
    return Architecture("kd_jax.models.vgg:VGG", {"depth": depth}, cost)


def _mobilenetv2(width: float, cost: Cost) -> Architecture:
    return Architecture("kd_jax.models.mobilenetv2:MobileNetV2", {"width": width}, cost)


def _mobilenetv3(size: str, cifar: bool, cost: Cost) -> Architecture:
    return Architecture(f"kd_jax.models.mobilenetv3:{size}", {"cifar": cifar}, cost)


def _bit(depth: int, width_factor: int, cost: Cost) -> Architecture:
    arguments = {"depth": depth, "width_factor": width_factor}
    return Architecture("kd_jax.models.bit:of_depth", arguments, cost)


MODELS: dict[str, Architecture] = {
    "resnet8": _resnet(1, Cost(77_392, 12_500_992, 64)),
    "resnet20": _resnet(3, Cost(271_824, 40_812_544, 64)),
    "resnet32": _resnet(5, Cost(466_256, 69_124_096, 64)),
    "resnet44": _resnet(7, Cost(660_688, 97_435_648, 64)),
    "resnet56": _resnet(9, Cost(855_120, 125_747_200, 64)),
    "vgg11_bn": _vgg(11, Cost(9_751_296, 153_288_704, 512, 512 * 512)),
    "vgg13_bn": _vgg(13, Cost(9_936_192, 228_786_176, 512, 512 * 512)),
    "vgg16_bn": _vgg(16, Cost(15_248_448, 313_720_832, 512, 512 * 512)),
    "vgg19_bn": _vgg(19, Cost(20_560_704, 398_655_488, 512, 512 * 512)),
    "mobilenetv2_x0_5": _mobilenetv2(0.5, Cost(687_680, 27_956_224, 1280)),
    "mobilenetv2_x0_75": _mobilenetv2(0.75, Cost(1_355_424, 59_297_280, 1280)),
    "mobilenetv2_x1_0": _mobilenetv2(1.0, Cost(2_223_872, 87_963_648, 1280)),
    "mobilenetv2_x1_4": _mobilenetv2(1.4, Cost(4_315_776, 170_055_424, 1792)),
    "mobilenet_v3_small": _mobilenetv3("small", False, Cost(1_517_856, 2_159_552, 1024)),
    "mobilenet_v3_small_cifar": _mobilenetv3("small", True, Cost(1_508_344, 17_491_488, 1024)),
    "mobilenet_v3_large": _mobilenetv3("large", False, Cost(4_202_032, 7_074_240, 1280)),
    "mobilenet_v3_large_cifar": _mobilenetv3("large", True, Cost(4_193_848, 66_444_384, 1280)),
    "bit_r50x1": _bit(50, 1, Cost(23_500_352, 83_410_944, 2048)),
    "bit_r101x1": _bit(101, 1, Cost(42_492_480, 159_170_560, 2048)),
    "bit_r152x2": _bit(152, 2, Cost(232_238_208, 934_903_808, 4096)),
}
_NOT_QUANTIZED = ("kd_jax.models.bit:of_depth",)  # group norm is no part of a convolution
NAMES = MODELS.keys()  # a view: contains whatever `MODELS` contains


def check_arch(arch: str) -> None:
    """Raise `UserError` unless `arch` is in the zoo."""
    if arch not in MODELS:
        raise UserError(f"unknown architecture {arch!r}: expected one of {', '.join(MODELS)}")


def is_quantizable(arch: str) -> bool:
    """Tell whether `student.quantize` may be asked of an architecture.

    Of one that a user added to the zoo its layers decide, see `module_checks.check_quantized`.
    """
    return arch in MODELS and MODELS[arch].module not in _NOT_QUANTIZED


def constructor(arch: str) -> Callable[..., Any]:
    """Return the callable that makes the module of `arch`; imports JAX and Flax.

    It takes the fields that all modules of the zoo have: `num_classes`, `axis_name`, `dtype` and
    `dropout_rate`.

    Raises:
      UserError: `arch` is not in the zoo.
    """
    check_arch(arch)
    module, arguments, _ = MODELS[arch]
    make = pkgutil.resolve_name(module) if isinstance(module, str) else module
    return functools.partial(make, **arguments)
