"""Convert a state dict to Flax variables and back, in PyTorch's layout or another of `name_maps`.

One error lists all keys that are missing, unexpected or of a wrong shape, by their names in the
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from kd_jax import models
from kd_jax.models import zoo
from kd_jax.runtime.errors import UserError
from kd_jax.weights import name_maps, saved_network, state_dicts

_NOT_WEIGHTS = "num_batches_tracked"
_MOST_KEYS = 10  # in a message
_LONGEST = 80  # characters of a name in a message


def from_state_dict(
    network: models.Network, state_dict: Mapping[str, np.ndarray], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Return Flax variables with the weights of a state dict, as float32.

    Args:
      network: the network of the weights; its head must have the file's number of classes.
      state_dict: names of any layout to arrays. PyTorch's `num_batches_tracked` is not a weight and
        is ignored.
      image_shape: `(H, W, C)` of its input images.

    Raises:
      UserError: keys are missing, unexpected, of another shape or dtype, or not finite.
    """
    expected_shapes = models.flat_shapes(network, image_shape)
    layout, arrays = name_maps.recognise(state_dict)
    # Parameters before running statistics: in the error they are more useful.
    ordered_paths = sorted(expected_shapes, key=lambda path: path[0] != "params")
    keys = {layout.key(path): path for path in ordered_paths}
    arrays = {key: value for key, value in arrays.items() if not key.endswith(_NOT_WEIGHTS)}
    problems = [f"missing {key}" for key in keys if key not in arrays]
    problems += [f"unexpected {key[:_LONGEST]}" for key in arrays if key not in keys]
    leaves: dict[tuple[str, ...], np.ndarray] = {}
    faults: list[str] = []
    for key, path in keys.items():
        if key not in arrays:
            continue
        shape = layout.shape(path, expected_shapes[path])
        if arrays[key].shape != shape:
            problems.append(f"{key} has shape {arrays[key].shape}, expected {shape}")
            continue
        array = _as_float32(layout.to_flax(path, arrays[key]))
        if array is None:
            problems.append(f"{key} holds {arrays[key].dtype}, expected floating-point numbers")
            continue
        leaves[path] = array
        if words := saved_network.what_is_not_a_weight(path, array):
            faults.append(f"{key} {words}")
    if problems:
        omission = f"; and {len(problems) - _MOST_KEYS} more" if len(problems) > _MOST_KEYS else ""
        raise UserError(
            f"the weights do not fit {network.arch} with {network.num_classes} classes: "
            f"{_suggest(layout, arrays)}; {'; '.join(problems[:_MOST_KEYS])}{omission}"
        )
    if faults:
        raise UserError(
            f"the weights cannot be right: {'; '.join(faults[:_MOST_KEYS])}; take another "
            "checkpoint of that training"
        )
    return models.both_collections(flax.traverse_util.unflatten_dict(leaves))


def _as_float32(array: np.ndarray) -> np.ndarray | None:
    """Return an array as float32; None if its dtype is not floating point (quantised weights)."""
    if array.dtype.kind in "biuc":
        return None
    with np.errstate(
        over="ignore"
    ):  # too large values become infinite, and the caller refuses them
        return np.ascontiguousarray(array, dtype=np.float32)


def to_state_dict(
    variables: Mapping[str, Any], layout: name_maps.Layout = name_maps.PYTORCH
) -> dict[str, np.ndarray]:
    """Return the state dict of Flax variables in a layout: the inverse of `from_state_dict`."""
    leaves = flax.traverse_util.flatten_dict(dict(variables))
    return {
        layout.key(path): layout.to_file(path, np.asarray(leaf)) for path, leaf in leaves.items()
    }


def _suggest(layout: name_maps.Layout, arrays: Mapping[str, np.ndarray]) -> str:
    """Return in words which architecture of the zoo the keys and shapes fit, for any head width.

    Also tries the keys without their common prefix.
    """
    prefix = state_dicts.common_prefix(arrays) if layout is name_maps.PYTORCH else ""
    bare_arrays = {key.removeprefix(prefix): array for key, array in arrays.items()}
    classes = layout.num_classes(bare_arrays)
    suggestion = ""
    if classes is not None:
        shapes = {key: value.shape for key, value in bare_arrays.items()}
        for arch in zoo.NAMES:
            network = models.build(arch, classes, (0.5,), (0.5,))
            expected_shapes = models.flat_shapes(network, (32, 32, 3))
            file_shapes = {
                layout.key(path): layout.shape(path, shape)
                for path, shape in expected_shapes.items()
            }
            if file_shapes == shapes:
                suggestion = f"they fit {arch} with {classes} classes"
                break
    if not prefix:
        return suggestion or "no architecture of the zoo fits them"
    start = prefix[:_LONGEST]
    if not suggestion:
        return f"all their names begin with {start}, and no architecture of the zoo fits them"
    return (
        f"all their names begin with {start}, without which {suggestion} (kd_jax.import_teacher "
        f"--key={start.rstrip('.')} takes it away)"
    )
