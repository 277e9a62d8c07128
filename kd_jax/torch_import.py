"""PyTorch state dict <-> Flax variables.

The Flax submodules carry the PyTorch names, so a leaf's PyTorch key is its path joined by dots
with the last word translated, and only the kernels' axes have to be turned. The mapping is a pure
function of the leaf's path and shape, the same for every architecture, and exact both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from kd_jax import models
from kd_jax.errors import UserError

# (collection, Flax leaf) -> PyTorch leaf.
_LEAF_NAMES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_NOT_WEIGHTS = "num_batches_tracked"


def torch_key(path: tuple[str, ...]) -> str:
    """Return the PyTorch key of a Flax leaf, e.g. `('params', 'layer1.0', 'conv1', 'kernel')`."""
    return ".".join((*path[1:-1], _LEAF_NAMES[path[0], path[-1]]))


def _to_flax(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    return array.T if array.ndim == 2 else array


def _to_torch(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    return array.T if array.ndim == 2 else array


def from_state_dict(
    network: models.Network, state_dict: Mapping[str, np.ndarray], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Return Flax variables with the weights of a PyTorch state dict, as float32.

    Args:
      network: what the weights are for; its head must have the file's number of classes.
      state_dict: PyTorch names to arrays. `num_batches_tracked` is not a weight and is left out.
      image_shape: `(H, W, C)` of the images it will see.

    Raises:
      UserError: all keys that are missing, unexpected or of another shape, at once.
    """
    expected = models.flat_shapes(network, image_shape)
    keys = {torch_key(path): path for path in expected}
    given = {key: value for key, value in state_dict.items() if not key.endswith(_NOT_WEIGHTS)}
    problems = [f"missing {key}" for key in keys if key not in given]
    problems += [f"unexpected {key}" for key in given if key not in keys]
    flat = {}
    for key, path in keys.items():
        if key not in given:
            continue
        array = _to_flax(np.asarray(given[key]))
        if array.shape == expected[path]:
            flat[path] = np.ascontiguousarray(array, dtype=np.float32)
        else:
            want = _to_torch(np.empty(expected[path], np.bool_)).shape
            problems.append(f"{key} has shape {given[key].shape}, expected {want}")
    if problems:
        raise UserError(
            f"the weights do not fit {network.arch} with {network.num_classes} classes: "
            f"{_suggest(given)}; {'; '.join(problems)}"
        )
    return flax.traverse_util.unflatten_dict(flat)


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return Flax variables under PyTorch names and layouts: the inverse of `from_state_dict`."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    return {torch_key(path): _to_torch(np.asarray(leaf)) for path, leaf in flat.items()}


def _suggest(given: Mapping[str, np.ndarray]) -> str:
    """Say which architecture of the zoo the keys and shapes fit, whatever the head's width."""
    heads = [value.shape[0] for key, value in given.items() if value.ndim == 2]
    classes = heads[-1] if heads else 0
    shapes = {key: value.shape for key, value in given.items()}
    for arch in models.MODELS if classes else ():
        network = models.build(arch, classes, (0.5,), (0.5,))
        wanted = {
            torch_key(path): _to_torch(np.empty(shape, np.bool_)).shape
            for path, shape in models.flat_shapes(network, (32, 32, 3)).items()
        }
        if wanted == shapes:
            return f"they fit {arch} with {classes} classes"
    return "no architecture of the zoo fits them"
