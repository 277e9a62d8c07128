"""The formats of files: what writes and runs each, and how close it must be. Imports no JAX."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from kd_jax.runtime.errors import UserError

INT8 = "int8"
CARD_ENDING = ".card.json"  # behind the name of a file, of the card beside it
ALL, ARRAYS = "all", "safetensors"  # all formats; the one that holds no program


class Tolerance(NamedTuple):
    """How far a file may be from the network that it was made of, on the verified images.

    Attributes:
      probability: largest difference of any probability; None for no limit.
      same: least percentage of images with the same class, ties aside.
      lost: most points of top-1 that may be lost; None for no limit.
    """

    probability: float | None
    same: float
    lost: float | None


EXACT = Tolerance(probability=1e-4, same=100.0, lost=None)


class Format(NamedTuple):
    """One format.

    Attributes:
      name: as `--format` takes it.
      suffix: of its file in a folder of all formats.
      family: key of what writes and runs it, in `exporter.FAMILIES`.
      arguments: which distinguish the formats of one family.
      packages: module -> package of what must be installed.
      runtime: what runs it, for people.
      tolerance: which a file must keep.
      limits: what a reader of the card must know.
    """

    name: str
    suffix: str
    family: str
    arguments: dict[str, str]
    packages: dict[str, str]
    runtime: str
    tolerance: Tolerance
    limits: str

    @property
    def is_int8(self) -> bool:
        """Whether its files hold int8 numbers."""
        return self.arguments.get("numbers") == INT8


_BATCHES = "Any batch, by resizing the input; a fresh interpreter has a batch of 1."
_TFLITE = Format(
    name="tflite",
    suffix=".tflite",
    family="tflite",
    arguments={},
    packages={"tensorflow": "tensorflow-cpu"},
    runtime="the interpreter of TensorFlow Lite (LiteRT)",
    tolerance=EXACT,
    limits=_BATCHES,
)
_ENTRIES = (
    Format(
        name=ARRAYS,
        suffix=".safetensors",
        family="pytorch",
        arguments={},
        packages={},
        runtime="the importer of kd_jax",
        tolerance=EXACT,
        limits="Arrays only, in PyTorch's layout and names: the class that loads them is the other "
        "project's, and the caller divides pixels by 255 and normalises them as told above.",
    ),
    Format(
        name="stablehlo",
        suffix=".stablehlo",
        family="stablehlo",
        arguments={},
        packages={"flatbuffers": "flatbuffers"},
        runtime="JAX",
        tolerance=EXACT,
        limits="Any batch, on cpu, cuda and tpu. Read by jax.export of this version of JAX, and of "
        "later ones for as long as JAX promises that.",
    ),
    Format(
        name="onnx",
        suffix=".onnx",
        family="onnx",
        arguments={},
        packages={"onnx": "onnx", "onnxruntime": "onnxruntime"},
        runtime="ONNX Runtime",
        tolerance=EXACT,
        limits="Any batch. Batch norm is folded into the convolutions.",
    ),
    _TFLITE,
    _TFLITE._replace(
        name="tflite-float16",
        suffix="-float16.tflite",
        arguments={"numbers": "float16"},
        tolerance=Tolerance(probability=None, same=99.5, lost=None),
        limits=f"{_BATCHES} Weights are float16; where the processor has no such arithmetic they "
        "are made float32 when the file is opened.",
    ),
    _TFLITE._replace(
        name="tflite-int8",
        suffix="-int8.tflite",
        arguments={"numbers": INT8},
        tolerance=Tolerance(probability=None, same=0.0, lost=5.0),
        limits=f"{_BATCHES} Weights and maps are int8.",
    ),
)
FORMATS = {entry.name: entry for entry in _ENTRIES}


def named(name: str | None) -> tuple[Format, ...]:
    """Return the formats that `--format` names; raise `UserError` if there is no such format."""
    if not name or (name != ALL and name not in FORMATS):
        given = f"--format={name}" if name else "--format is missing"
        raise UserError(f"{given}: expected one of {', '.join((*FORMATS, ALL))}")
    return tuple(FORMATS.values()) if name == ALL else (FORMATS[name],)


def check_installed(entries: Sequence[Format]) -> None:
    """Raise `UserError` if a package that a format needs is not installed."""
    needed = {module: package for entry in entries for module, package in entry.packages.items()}
    missing = [package for module, package in needed.items() if not _is_installed(module)]
    if missing:
        names = ", ".join(
            entry.name for entry in entries if set(entry.packages.values()) & {*missing}
        )
        raise UserError(
            f"--format={names} needs {' and '.join(missing)}, not installed here: pip install "
            "'kd_jax[export]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
