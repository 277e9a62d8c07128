"""Weights in PyTorch's layout and names, as a safetensors file for the reference's own class.

Names and axes are those of `weights.name_maps`, so that import and export are inverse.
"""

from __future__ import annotations

import json

import numpy as np
import safetensors.numpy

from kd_jax.export.source import Source
from kd_jax.runtime.errors import UserError
from kd_jax.weights import published, torch_import

_COUNTERS = ".num_batches_tracked"
_MEANS = ".running_mean"


def content(source: Source, outputs: str) -> bytes:
    """Return the file of a network's weights.

    Args:
      source: the network.
      outputs: has no meaning here.

    Raises:
      UserError: no PyTorch network with the names of this one is known.
    """
    del outputs
    return _with_sorted_texts(safetensors.numpy.save(state_dict(source), texts(source)))


def _with_sorted_texts(file: bytes) -> bytes:
    """Return a file with the texts of its header in order, which the library leaves to chance."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    texts = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": texts, **header}).encode()
    text += b" " * (-len(text) % 8)  # the arrays behind it stay aligned
    return len(text).to_bytes(8, "little") + text + file[end:]


def state_dict(source: Source) -> dict[str, np.ndarray]:
    """Return the state dict of a network, whole, so that a strict `load_state_dict` takes it.

    The counters of batch norms, which kd_jax does not have and PyTorch does not use in eval mode,
    are zero.

    Raises:
      UserError: no PyTorch network with the names of this one is known.
    """
    arch = source.card.arch
    if arch not in published.REFERENCES:
        raise UserError(
            f"the names of {arch}'s arrays are not known to be those of a PyTorch network, so "
            "there is no class to load them into: expected one of "
            f"{', '.join(published.REFERENCES)}; the other formats hold any network"
        )
    arrays: dict[str, np.ndarray] = {}
    for name, array in torch_import.to_state_dict(source.variables).items():
        arrays[name] = np.ascontiguousarray(array)
        if name.endswith(_MEANS):
            arrays[name.removesuffix(_MEANS) + _COUNTERS] = np.zeros((), np.int64)
    return arrays


def texts(source: Source) -> dict[str, str]:
    """Return the texts in the header of the file."""
    card = source.card
    return source.texts() | {
        "format": "pt",  # how others mark files of PyTorch's tensors
        "project": _project(card.arch),
        "num_classes": str(card.num_classes),
        "image_shape": json.dumps(card.image_shape),
        "mean": json.dumps(card.mean),
        "std": json.dumps(card.std),
        "input": "float32 [n, 3, H, W], RGB, (pixels / 255 - mean) / std",
    }


def _project(arch: str) -> str:
    """Return the project whose PyTorch class has these names."""
    is_bit = arch.startswith("bit_")  # its reference for outputs is a definition in NumPy
    return "google-research/big_transfer" if is_bit else published.REFERENCES[arch]
