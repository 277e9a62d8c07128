"""Read the pickle of a PyTorch file: the position of each tensor, and which names are allowed."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from kd_jax.weights import pickle_data
from kd_jax.weights.pickle_data import Name

_DTYPES: dict[str, tuple[str, Any]] = {
    "DoubleStorage": ("float64", np.float64),
    "FloatStorage": ("float32", np.float32),
    "HalfStorage": ("float16", np.float16),
    "BFloat16Storage": ("bfloat16", ml_dtypes.bfloat16),
    "LongStorage": ("int64", np.int64),
    "IntStorage": ("int32", np.int32),
    "ShortStorage": ("int16", np.int16),
    "CharStorage": ("int8", np.int8),
    "ByteStorage": ("uint8", np.uint8),
    "BoolStorage": ("bool", np.bool_),
    "UntypedStorage": ("uint8", np.uint8),
}
_BY_NAME = {name: np.dtype(dtype) for name, dtype in _DTYPES.values()}
_STORAGES = {Name(module, name): np.dtype(dtype) for name, (_, dtype) in _DTYPES.items()
             for module in ("torch", "torch.storage")}  # fmt: skip
# Dtypes that no network of kd_jax has: tensors of them are not read.
_OTHER_DTYPES = ("complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "uint16",
                 "uint32", "uint64", "qint8", "quint8", "qint32")  # fmt: skip
_OTHER_STORAGES = {
    Name("torch", f"{name}Storage")
    for name in ("ComplexFloat", "ComplexDouble", "QInt8", "QUInt8", "QInt32")
}
_OTHER_TYPES = {Name("torch", name) for name in _OTHER_DTYPES}
_MOST_DIMENSIONS = 32  # of an array in NumPy


class Tensor(NamedTuple):
    """A tensor as the pickle describes it: a strided view of a storage.

    Attributes:
      key: name of the storage.
      dtype: dtype of the elements.
      offset: index of its first element in the storage.
      shape: shape.
      steps: strides, in elements.
    """

    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of its elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def end(self) -> int:
        """Index after its last element in the storage."""
        pairs = zip(self.shape, self.steps, strict=True)
        return self.offset + 1 + sum((length - 1) * step for length, step in pairs)


class _Storage(NamedTuple):
    """One file of elements in the archive. A pickle cannot create this type itself.

    Attributes:
      key: name of the file.
      dtype: dtype of the elements.
      length: number of elements.
    """

    key: str
    dtype: np.dtype
    length: int


def describe(content: bytes) -> Any:
    """Return the value that a pickle describes, with a `Tensor` for each tensor.

    Errors as of `pickle_data.read`.
    """
    return pickle_data.read(content, _CALLS, _storage)


def _storage(identifier: Any) -> Any:
    """Return the storage of a persistent identifier. The identifier is untrusted data."""
    kind, storage, key, _, size = identifier if isinstance(identifier, tuple) else (None,) * 5
    if not isinstance(kind, str) or kind != "storage" or not isinstance(storage, Name):
        raise pickle_data.RefusedError("a persistent identifier that is no storage")
    if storage in _OTHER_STORAGES:
        return pickle_data.Thing()
    if storage not in _STORAGES:
        raise pickle_data.RefusedError(".".join(storage)[:100])
    if not isinstance(key, str):
        raise ValueError(f"the key of a storage is a {type(key).__name__}, not text")
    return _Storage(key, _STORAGES[storage], _whole(size))


def _tensor(storage: Any, offset: int, shape: Any, steps: Any, *_: Any) -> Any:
    """Return a tensor; it must be inside its storage and not repeat parts of it."""
    if isinstance(storage, pickle_data.Thing):
        return storage
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    tensor = Tensor(storage.key, storage.dtype, _whole(offset), _sizes(shape), _sizes(steps))
    # Steps are untrusted: a large one would read memory outside the storage, and a step of 0 would
    # make many elements from one.
    if len(tensor.shape) != len(tensor.steps):
        raise ValueError(f"a tensor of shape {tensor.shape} has the steps {tensor.steps}")
    if tensor.size and (tensor.end > storage.length or tensor.size > tensor.end - tensor.offset):
        raise ValueError(
            f"a tensor of shape {tensor.shape} reaches outside its storage of {storage.length} "
            "elements, or repeats a part of it (save it with .clone())"
        )
    return tensor


def _tensor_of_type(storage: Any, offset: int, shape: Any, steps: Any, *extras: Any) -> Any:
    """Return a tensor whose storage is of bytes, and whose dtype is an extra argument."""
    dtype_name = extras[2]
    if not isinstance(dtype_name, Name) or dtype_name.module != "torch":
        raise ValueError("a tensor is of a type that is none of PyTorch's")
    if dtype_name in _OTHER_TYPES or isinstance(storage, pickle_data.Thing):
        return pickle_data.Thing()
    if dtype_name.name not in _BY_NAME:
        raise ValueError(f"a tensor is of the type {dtype_name.name[:100]}")
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    dtype = _BY_NAME[dtype_name.name]
    length = storage.length * storage.dtype.itemsize // dtype.itemsize
    return _tensor(_Storage(storage.key, dtype, length), offset, shape, steps)


def _tensor_with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Return the tensor without its Python attributes."""
    constructor = _CALLS.get(function) if isinstance(function, Name) else None
    if constructor is None or constructor is _tensor_with_attributes:
        raise ValueError("a tensor is made by something that makes none")
    return constructor(*pickle_data.check_arguments(arguments))


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError(
            f"a size is not a whole number from 0 to 2^48, but of type {type(value).__name__}"
        )
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > _MOST_DIMENSIONS:
        raise ValueError(f"a shape is no tuple of up to {_MOST_DIMENSIONS} sizes")
    return tuple(map(_whole, values))


def _first(value: Any = (), *_: Any) -> Any:
    return value


def _dict(content: Any = (), *_: Any) -> dict[Any, Any]:
    if isinstance(content, dict):
        return content
    result: dict[Any, Any] = {}
    for key, value in content:
        pickle_data.set_item(result, key, value)
    return result


# All names that a pickle may contain: those that torch.load(weights_only=True) allows (PyTorch's
# torch/_weights_only_unpickler.py), and others that are common beside weights. None: the result of
# the call is not needed.
_CALLS: dict[Name, Any] = {
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    Name("torch._utils", "_rebuild_parameter"): _first,
    Name("torch._utils", "_rebuild_parameter_with_state"): _first,
    Name("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
    Name("collections", "OrderedDict"): _dict,
    Name("collections", "Counter"): _dict,
    Name("collections", "defaultdict"): lambda *_: {},
    Name("torch", "Size"): _first,
    **{
        Name(module, name): call
        for module in ("builtins", "__builtin__")
        for name, call in {
            "dict": _dict, "list": None, "set": _first, "frozenset": _first, "tuple": _first,
            "int": None, "float": None, "bool": None, "str": None, "bytes": None,
            "bytearray": None, "complex": None, "object": None, "range": None, "xrange": None,
            "slice": None,
        }.items()
    },
    **dict.fromkeys((*_STORAGES, *_OTHER_STORAGES)),
    **{Name("torch", name): None for name in (
        *_BY_NAME, *_OTHER_DTYPES, "device", "Tensor", "dtype", "per_tensor_affine",
        "per_channel_affine", "strided", "preserve_format", "contiguous_format", "channels_last",
    )},
    **{Name("torch._utils", f"_rebuild_{name}"): None
       for name in ("qtensor", "sparse_tensor", "sparse_csr_tensor", "nested_tensor",
                    "meta_tensor_no_storage", "device_tensor_from_numpy")},
    **{Name(module, name): None for module in ("numpy.core.multiarray", "numpy._core.multiarray")
       for name in ("scalar", "_reconstruct")},
    Name("torch.nn.parameter", "Parameter"): _first,
    Name("torch.serialization", "_get_layout"): None,
    Name("numpy", "dtype"): None,
    Name("numpy", "ndarray"): None,
    Name("argparse", "Namespace"): None,
    Name("copyreg", "_reconstructor"): None,
    Name("copy_reg", "_reconstructor"): None,
    Name("_codecs", "encode"): None,
}  # fmt: skip
