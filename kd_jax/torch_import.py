"""State dict <-> Flax variables, under PyTorch's names or another layout of `kd_jax.layouts`.

Every missing, unexpected or misshapen key is told at once, by the file's own name for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from kd_jax import layouts, models
from kd_jax.errors import UserError

_NOT_WEIGHTS = "num_batches_tracked"


def from_state_dict(
    network: models.Network, state_dict: Mapping[str, np.ndarray], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Return Flax variables with the weights of a state dict, as float32.

    Args:
      network: what the weights are for; its head must have the file's number of classes.
      state_dict: names of any layout to arrays. PyTorch's `num_batches_tracked` is not a weight and
        is left out.
      image_shape: `(H, W, C)` of the images it will see.

    Raises:
      UserError: all keys that are missing, unexpected or of another shape, at once.
    """
    expected = models.flat_shapes(network, image_shape)
    layout, given = layouts.recognise(state_dict)
    keys = {layout.key(path): path for path in expected}
    given = {key: value for key, value in given.items() if not key.endswith(_NOT_WEIGHTS)}
    problems = [f"missing {key}" for key in keys if key not in given]
    problems += [f"unexpected {key}" for key in given if key not in keys]
    flat = {}
    for key, path in keys.items():
        if key not in given:
            continue
        want = layout.shape(path, expected[path])
        if given[key].shape == want:
            array = layout.to_flax(path, given[key])
            flat[path] = np.ascontiguousarray(array, dtype=np.float32)
        else:
            problems.append(f"{key} has shape {given[key].shape}, expected {want}")
    if problems:
        raise UserError(
            f"the weights do not fit {network.arch} with {network.num_classes} classes: "
            f"{_suggest(layout, given)}; {'; '.join(problems)}"
        )
    return models.both_collections(flax.traverse_util.unflatten_dict(flat))


def to_state_dict(
    variables: Mapping[str, Any], layout: layouts.Layout = layouts.PYTORCH
) -> dict[str, np.ndarray]:
    """Return Flax variables under a layout's names: the inverse of `from_state_dict`."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    return {layout.key(path): layout.to_file(path, np.asarray(leaf)) for path, leaf in flat.items()}


def _suggest(layout: layouts.Layout, given: Mapping[str, np.ndarray]) -> str:
    """Say which architecture of the zoo the keys and shapes fit, whatever the head's width."""
    classes = layout.num_classes(given)
    if classes is None:
        return "no architecture of the zoo fits them"
    shapes = {key: value.shape for key, value in given.items()}
    for arch in models.MODELS:
        network = models.build(arch, classes, (0.5,), (0.5,))
        expected = models.flat_shapes(network, (32, 32, 3))
        wanted = {layout.key(path): layout.shape(path, shape) for path, shape in expected.items()}
        if wanted == shapes:
            return f"they fit {arch} with {classes} classes"
    return "no architecture of the zoo fits them"
