"""Read the tensors of a PyTorch file without PyTorch, and without running what is in it.

A `.pth` file is a zip archive: a pickle that describes the tensors, and one raw file a storage.
A pickle can run any code, so this reader lets it name only what builds a tensor. Doing it here
spares every user a PyTorch installation (gigabytes) for a table of arrays; where PyTorch is
installed the tests compare the two readers.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kd_jax.errors import UserError

_STORAGE_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _RefusedError(Exception):
    """The pickle names something that is not a tensor's part."""


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Return the state dict in a PyTorch file, in its own order and dtypes.

    A state dict inside a checkpoint (under `state_dict`, `model` or `net`) is found, and the prefix
    `module.` of data-parallel training is dropped.

    Args:
      path: a file written by `torch.save` of PyTorch 1.6 or newer.

    Raises:
      UserError: no such file, not such a file, truncated, or it holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no PyTorch file at {path}: expected a .pth or .pt file")
    try:
        with zipfile.ZipFile(path) as archive:
            loaded = _load(archive)
    except _RefusedError as refused:
        raise UserError(
            f"{path} holds {refused} beside tensors, which could run code when read: it is "
            "refused; save the model's state_dict() alone"
        ) from None
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is not a whole PyTorch file (a zip archive as torch.save writes it since "
            "PyTorch 1.6): fetch it again, or save its state_dict() anew"
        ) from None
    except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError,
            OSError, TypeError, UnicodeError, ValueError, OverflowError, RecursionError,
            NotImplementedError, RuntimeError, MemoryError) as error:  # fmt: skip
        raise UserError(
            f"{path} cannot be read as a PyTorch file ({error}): fetch it again, or save its "
            "state_dict() anew"
        ) from None
    return _find_state_dict(loaded, path)


def _load(archive: zipfile.ZipFile) -> Any:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ValueError(f"expected one data.pkl inside, found {len(names)}")
    root = names[0].removesuffix("data.pkl")
    order = "<"
    if f"{root}byteorder" in archive.namelist():
        order = "<" if archive.read(f"{root}byteorder") == b"little" else ">"

    storages: dict[str, np.ndarray] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return _rebuild_tensor
            if (module, name) == ("torch._utils", "_rebuild_parameter"):
                return lambda data, requires_grad, hooks: data
            if module == "torch" and name in _STORAGE_DTYPES:
                return name
            raise _RefusedError(f"{module}.{name}")

        def persistent_load(self, pid: Any) -> np.ndarray:
            kind, storage_name, key, _, size = pid
            if kind != "storage" or storage_name not in _STORAGE_DTYPES:
                raise _RefusedError(str(pid))
            if key not in storages:
                dtype = np.dtype(_STORAGE_DTYPES[storage_name]).newbyteorder(order)
                storages[key] = np.frombuffer(archive.read(f"{root}data/{key}"), dtype, size)
            return storages[key]

    return Unpickler(io.BytesIO(archive.read(names[0]))).load()


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # Strides come from the file: one outside the storage would read foreign memory.
    if min((offset, *shape, *strides), default=0) < 0 or (0 not in shape and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def _find_state_dict(loaded: Any, path: Path) -> dict[str, np.ndarray]:
    if isinstance(loaded, dict):
        for key in ("state_dict", "model", "net"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
                break
    is_state_dict = isinstance(loaded, dict) and all(
        isinstance(key, str) and isinstance(value, np.ndarray) for key, value in loaded.items()
    )
    if not is_state_dict or not loaded:
        raise UserError(
            f"{path} holds no state dict (names with tensors): save the model's state_dict()"
        )
    return {key.removeprefix("module."): value for key, value in loaded.items()}
