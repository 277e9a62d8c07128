"""Read the tensors of a PyTorch file without PyTorch, and without running code from the file.

A `.pth` file is a zip archive: a pickle that describes the tensors, and one raw file per storage.
With this reader, users need no PyTorch (gigabytes) to read a table of arrays. Where PyTorch is
installed, the tests compare the two readers.

Memory is bounded by the size of the file: each storage is read once, only the range that its
tensors use, and nothing compressed is read. The arrays are read-only views of these buffers.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from kd_jax.runtime.errors import UserError
from kd_jax.weights import pickle_data, state_dicts, torch_pickle
from kd_jax.weights.torch_pickle import Tensor

_SLACK_BYTES = 16_000_000
_CHUNK_BYTES = 1_000_000
_MOST_DIRECTORY_BYTES = 4_000_000  # of the archive's table of contents: about 50,000 entries


def read_state_dict(path: str | Path, key: str = "") -> dict[str, np.ndarray]:
    """Return the state dict in a PyTorch file, in its own order and dtypes, read-only.

    Args:
      path: a file written by `torch.save` of PyTorch 1.6 or newer.
      key: which set of weights, if the file has several, see `state_dicts.choose`.

    Raises:
      UserError: there is no such file, it is of another format or truncated, or it contains names
        that are not known to be harmless.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no PyTorch file at {path}: expected a .pth or .pt file")
    try:
        with zipfile.ZipFile(_small(path)) as archive:
            root = _root(archive)
            content = torch_pickle.describe(_content(archive, f"{root}data.pkl"))
            tensors = state_dicts.choose(content, key, path, lambda x: isinstance(x, Tensor))
            order: Literal["<", ">"] = "<"
            if f"{root}byteorder" in archive.namelist():
                order = "<" if _content(archive, f"{root}byteorder") == b"little" else ">"
            return _arrays(archive, f"{root}data/", tensors, order)
    except pickle_data.RefusedError as error:
        if str(error).startswith("__torch__."):
            raise UserError(
                f"{path} is a program of TorchScript, which is not run: save the model's "
                "state_dict() alone"
            ) from None
        raise UserError(
            f"{path} holds {error} beside tensors, which could run code when read: it is "
            "refused; save the model's state_dict() alone"
        ) from None
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is not a whole PyTorch file (a zip archive as torch.save writes it since "
            "PyTorch 1.6): fetch it again, or save its state_dict() anew"
        ) from None
    except UserError:
        raise
    except (AttributeError, EOFError, IndexError, KeyError, OSError, TypeError, ValueError,
            OverflowError, RecursionError, NotImplementedError, RuntimeError,
            MemoryError) as error:  # fmt: skip
        raise UserError(
            f"{path} cannot be read as a PyTorch file ({str(error)[:200]}): fetch it again, or "
            "save its state_dict() anew"
        ) from None


def _small(path: Path) -> Path:
    """Return the path; raise `ValueError` if the archive's table of contents is too large."""
    with open(path, "rb") as file:
        # zipfile calls this before it reads the whole table; there is no public function for it.
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > _MOST_DIRECTORY_BYTES:  # type: ignore[attr-defined]
        raise ValueError("its table of contents has tens of thousands of entries")
    return path


def _root(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ValueError(f"expected one data.pkl inside, found {len(names)}")
    return names[0].removesuffix("data.pkl")


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Return an entry; raise `ValueError` if it is compressed, which torch.save never does."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"{name[:100]} is compressed, which torch.save does not do")
    return entry


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    return archive.read(_entry(archive, name))


def _arrays(
    archive: zipfile.ZipFile, folder: str, tensors: Mapping[str, Tensor], order: Literal["<", ">"]
) -> dict[str, np.ndarray]:
    """Return the arrays of tensors. Sizes are checked before anything is read.

    Args:
      archive: the open file.
      folder: folder of the storages in the archive.
      tensors: names to tensors.
      order: byte order of the elements.
    """
    ranges: dict[str, tuple[int, int]] = {}  # storage -> range of bytes that its tensors use
    for tensor in set(tensors.values()):
        if tensor.size:
            width = tensor.dtype.itemsize
            begin, end = ranges.get(tensor.key, (2**60, 0))
            ranges[tensor.key] = (
                min(begin, tensor.offset * width), max(end, tensor.end * width)
            )  # fmt: skip
    declared_bytes = sum(tensor.size * tensor.dtype.itemsize for tensor in set(tensors.values()))
    bytes_to_read = sum(end - begin for begin, end in ranges.values())
    stored_bytes = sum(_entry(archive, folder + key).file_size for key in ranges)
    file_bytes = os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
    if (
        bytes_to_read > 2 * declared_bytes + _SLACK_BYTES
        or max(bytes_to_read, stored_bytes) > file_bytes
    ):
        raise ValueError(
            f"its tensors have {declared_bytes:,} bytes, but take {bytes_to_read:,} of "
            f"{file_bytes:,} bytes to read: save them with .clone()"
        )
    contents = {
        key: _part(archive, folder + key, begin, end) for key, (begin, end) in ranges.items()
    }
    arrays = {}
    for name, tensor in tensors.items():
        dtype = tensor.dtype.newbyteorder(order)
        if not tensor.size:
            array = np.zeros(tensor.shape, dtype)
            array.flags.writeable = False
        else:
            begin = ranges[tensor.key][0]
            steps = [step * dtype.itemsize for step in tensor.steps]
            array = np.ndarray(
                tensor.shape, dtype, contents[tensor.key],
                tensor.offset * dtype.itemsize - begin, steps,
            )  # fmt: skip
        arrays[name] = array
    return arrays


def _part(archive: zipfile.ZipFile, name: str, begin: int, end: int) -> bytes:
    """Return bytes `begin` to `end` of an entry. The rest is read too, to verify its checksum."""
    with archive.open(_entry(archive, name)) as file:
        if begin == 0 and end == archive.getinfo(name).file_size:
            content = file.read()
        else:
            parts, position = [], 0
            while chunk := file.read(_CHUNK_BYTES):
                parts.append(chunk[max(begin - position, 0) : max(end - position, 0)])
                position += len(chunk)
            content = b"".join(parts)
    if len(content) != end - begin:
        raise EOFError(f"{name[:100]} is shorter than its tensors")
    return content
