"""Read named weights from whatever file they are in, running nothing that is in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from kd_jax import torch_file
from kd_jax.errors import UserError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by the names that they have there.

    Args:
      path: `.safetensors`, `.npz`, or anything else as `torch.save` writes it.

    Raises:
      UserError: the file is not there, is damaged, or holds more than arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file of weights at {path}: expected a {', '.join(SUFFIXES)} file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    return torch_file.read_state_dict(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): fetch it again"
        ) from None
    if any("/" in name for name in arrays):
        raise UserError(
            f"{path} is part of a network stored by kd_jax: give its directory, {path.parent}, as "
            "config.teacher.weights; it needs no import"
        )
    return arrays


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, SyntaxError,
            NotImplementedError, MemoryError, zipfile.BadZipFile) as error:  # fmt: skip
        raise UserError(
            f"{path} is not a whole .npz file of plain arrays ({error}): pickled objects are "
            "refused; save it anew with numpy.savez(path, **arrays)"
        ) from None
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" and array.dtype != "V2":
            raise UserError(
                f"{path} has {name} of {array.dtype}: expected arrays of numbers, as "
                "numpy.savez(path, **arrays) writes them"
            )
    # V2 is what NumPy makes of bfloat16.
    return {
        name: array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
        for name, array in arrays.items()
    }
