"""Names and axis orders of arrays in files of weights: PyTorch's, and those of BiT's `.npz` files.

A layout is a pure function of a leaf's path and shape, and is exact in both directions. PyTorch's
needs no table: the Flax submodules have the PyTorch names, so a key is the path joined by dots with
the last word translated. The authors of BiT published two layouts: the names of TensorFlow
(`BiT-M-R50x1.npz`), and for distilled networks those of big_vision (`R50x1_224.npz`).

Source: google-research/big_vision:big_vision/models/bit_paper.py, which reads both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from kd_jax.weights import state_dicts

Path = tuple[str, ...]


class Layout(NamedTuple):
    """One naming scheme with its axis orders.

    Attributes:
      key: maps the path of a leaf to its name in the file.
      to_file, to_flax: map `(path, array)` to the array in the axis order of the file or of Flax.
      head: name of the bias with one value per class. In the PyTorch layout only BiT has it; for
        other networks the last matrix gives the number of classes.
    """

    key: Callable[[Path], str]
    to_file: Callable[[Path, np.ndarray], np.ndarray]
    to_flax: Callable[[Path, np.ndarray], np.ndarray]
    head: str

    def shape(self, path: Path, flax_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a leaf of shape `flax_shape` has in the file."""
        return self.to_file(path, np.broadcast_to(np.False_, flax_shape)).shape

    def num_classes(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """Return the number of classes of the head in a file; None if it cannot be determined."""
        if self.head in arrays:
            bias = arrays[self.head]
            return len(bias) if bias.ndim == 1 else None
        matrices = [array for array in arrays.values() if array.ndim == 2]
        return len(matrices[-1]) if matrices else None


# (collection, Flax leaf) -> PyTorch leaf.
_LEAF_NAMES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def _torch_key(path: Path) -> str:
    """Return the PyTorch key, e.g. of `('params', 'layer1.0', 'conv1', 'kernel')`."""
    return ".".join((*path[1:-1], _LEAF_NAMES.get((path[0], path[-1]), path[-1])))


def _torch_to_flax(path: Path, array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    return array.T if array.ndim == 2 else array


def _flax_to_torch(path: Path, array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    return array.T if array.ndim == 2 else array


PYTORCH = Layout(_torch_key, _flax_to_torch, _torch_to_flax, "head.conv.bias")

_TENSORFLOW_WORDS = {
    "root.conv": "root_block/standardized_conv2d",
    **{f"conv{i}": f"{part}/standardized_conv2d" for i, part in enumerate("abc", 1)},
    **{f"gn{i}": f"{part}/group_norm" for i, part in enumerate("abc", 1)},
    "downsample": "a/proj/standardized_conv2d",
    "head.gn": "group_norm",
    "head.conv": "head/conv2d",
}
_BIG_VISION_WORDS = {
    "root.conv": "root_block/conv_root",
    "downsample": "conv_proj",
    "head.gn": "norm-pre-head",
    "head.conv": "head",
}


def _is_norm(path: Path) -> bool:
    return bool(re.fullmatch(r"gn\d|head\.gn", path[-2]))


def _bit_words(path: Path, words: dict[str, str]) -> list[str]:
    """Return the words of a name without the first one and without the leaf."""
    inner_words = [words.get(word, word) for word in path[1:-1]]
    return [re.sub(r"body\.(block\d+)\.(unit\d+)", r"\1/\2", word) for word in inner_words]


def _tensorflow_key(path: Path) -> str:
    leaf = {"scale": "gamma", "bias": "beta"}[path[-1]] if _is_norm(path) else path[-1]
    return "/".join(["resnet", *_bit_words(path, _TENSORFLOW_WORDS), leaf])


def _big_vision_key(path: Path) -> str:
    return "/".join([*_bit_words(path, _BIG_VISION_WORDS), path[-1]])


def _flax_to_big_vision(path: Path, array: np.ndarray) -> np.ndarray:
    if path[-2:] == ("head.conv", "kernel"):
        return array[0, 0]  # a linear layer
    return array[None, None, None] if _is_norm(path) else array


def _big_vision_to_flax(path: Path, array: np.ndarray) -> np.ndarray:
    if path[-2:] == ("head.conv", "kernel"):
        return array[None, None]
    return array[0, 0, 0] if _is_norm(path) else array


def _unchanged(path: Path, array: np.ndarray) -> np.ndarray:
    return array


BIT_TENSORFLOW = Layout(_tensorflow_key, _unchanged, _unchanged, "resnet/head/conv2d/bias")
BIT_BIG_VISION = Layout(_big_vision_key, _flax_to_big_vision, _big_vision_to_flax, "head/bias")


def recognise(arrays: Mapping[str, np.ndarray]) -> tuple[Layout, dict[str, np.ndarray]]:
    """Return the layout of a file, and its weights without other contents of the checkpoint.

    Some of the TensorFlow files number their convolutions (`standardized_conv2d_17`). The rest of
    the name is unique already, so the number is removed.
    """
    if any(name.startswith("resnet/") for name in arrays):
        weights = {
            re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", name): array
            for name, array in arrays.items()
            if name.startswith("resnet/")
        }
        return BIT_TENSORFLOW, weights
    for prefix in ("", "params/", "opt/target/"):
        if f"{prefix}root_block/conv_root/kernel" in arrays:
            weights = {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix)
            }
            return BIT_BIG_VISION, weights
    return PYTORCH, state_dicts.without_prefix(arrays)
