"""Read the named weights in a file, whatever its format, without running code from the file.

A new format needs a reader here, its suffix in `SUFFIXES`, and a branch in `read`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from kd_jax.runtime.errors import UserError
from kd_jax.weights import state_dicts, torch_file

_MOST_DEFLATED = 1032  # the highest compression ratio of zlib
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz")
_ACCEPTED = (
    "expected a file as torch.save, safetensors or numpy.savez writes it "
    f"({', '.join(SUFFIXES)}), with PyTorch's names of a network in the zoo"
)
# Formats that are not read, recognised by the first bytes of the file or by the suffix.
_BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it (.h5)",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": "written by PyTorch before 1.6",
    b"GGUF": "a GGUF file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"version https://git-lfs": "a pointer of git-lfs: the file itself is not there (git lfs pull)",
    b"<": "a page of HTML: the download gave an answer in place of the file",
}
_ENDINGS = {
    ".keras": "a Keras model",
    ".h5": "a Keras file",
    ".hdf5": "a Keras file",
    ".msgpack": "a Flax file of msgpack",
    ".onnx": "an ONNX graph",
    ".tflite": "a TensorFlow Lite model",
    ".pb": "a TensorFlow graph",
    ".ckpt": "a TensorFlow checkpoint, or one that is damaged",
    ".index": "a part of a TensorFlow checkpoint",
    ".orbax": "an Orbax checkpoint",
    ".pkl": "a Python pickle",
    ".pickle": "a Python pickle",
    ".npy": "a single array",
}


def read(path: str | Path, key: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a file by their names in it.

    Args:
      path: `.safetensors`, `.npz`; any other suffix is read as a file of `torch.save`.
      key: which set of weights, if the file has several, see `state_dicts.choose`.

    Raises:
      UserError: the file does not exist, is damaged, or contains more than arrays.
    """
    path = Path(path)
    check(path)
    if path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    else:
        return torch_file.read_state_dict(path, key)
    return state_dicts.under(arrays, key, path) if key else arrays


def check(path: Path) -> None:
    """Raise `UserError` if a file does not exist or is known to have a format that is not read."""
    if path.is_dir():
        raise UserError(
            f"{path} is a directory: expected a {', '.join(SUFFIXES)} file (a directory made by "
            "import_teacher needs no import: give it as config.teacher.weights)"
        )
    if not path.is_file():
        raise UserError(f"no file of weights at {path}: expected a {', '.join(SUFFIXES)} file")
    if format_name := _foreign(path):
        raise UserError(f"{path} is {format_name}, which kd_jax does not read: {_ACCEPTED}")


def _foreign(path: Path) -> str | None:
    """Return the name of a format that is not read; None if the file may be readable."""
    try:
        with open(path, "rb") as file:
            first_bytes = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable") from None
    # A safetensors file begins with the length of its header, 8 bytes and below 2^32, so its first
    # bytes may be those of another format.
    may_be_safetensors = path.suffix == ".safetensors" and first_bytes[4:8] == bytes(4)
    for beginning, kind in _BEGINNINGS.items():
        if first_bytes.startswith(beginning) and not may_be_safetensors:
            return kind
    is_archive = first_bytes.startswith(b"PK")  # Lightning's .ckpt is a file of torch.save
    if path.suffix == ".keras" or not is_archive:
        return _ENDINGS.get(path.suffix.lower())
    return None


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
            for entry in archive.zip.infolist():
                _check_entry(archive.zip, entry)
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, SyntaxError,
            NotImplementedError, MemoryError, OverflowError, RuntimeError, zlib.error,
            zipfile.BadZipFile) as error:  # fmt: skip
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
    # NumPy stores bfloat16 as V2.
    return {
        name: array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
        for name, array in arrays.items()
    }


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raise `ValueError` if an entry declares an array larger than its bytes can be.

    NumPy allocates the declared size before it reads.
    """
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{entry.filename[:100]} is of a later version of NumPy's format")
        shape, _, dtype = read_header(file)
    declared_bytes = math.prod(shape) * dtype.itemsize
    if declared_bytes > min(entry.file_size, _MOST_DEFLATED * entry.compress_size + 1000):
        raise ValueError(
            f"{entry.filename[:100]} declares {declared_bytes:,} bytes and holds fewer"
        )
