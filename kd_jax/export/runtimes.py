"""Exported files in the runtimes that run them: LiteRT, ONNX Runtime, JAX.

What LiteRT and ONNX Runtime run needs no JAX.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kd_jax.runtime import quiet_tensorflow
from kd_jax.runtime.errors import UserError, in_short

LABELS_FILE, FACTS_FILE = "labels.txt", "network.json"  # in the archive of a .tflite file
_OUTPUTS = ("logits", "probabilities")
_CUSTOM_CALL = re.compile(r'custom_call\s*@"?([^\s"(]+)')  # in the text of a StableHLO program


class MissingRuntimeError(UserError):
    """What runs a file is not installed here."""


class Program(NamedTuple):
    """A file, opened.

    Attributes:
      call: uint8 `[n, H, W, C]` to float32 `[n, classes]`. Not for two threads at once. Raises
        `UserError` where its runtime fails.
      image_shape: `(H, W, C)`.
      num_classes: width of the output.
      outputs: `logits` or `probabilities`; None where the file does not say.
      texts: what else the file says, see `Source.texts`; empty where its format has no place.
      runtime: what runs it, for people.
    """

    call: Callable[[np.ndarray], np.ndarray]
    image_shape: tuple[int, int, int]
    num_classes: int
    outputs: str | None
    texts: dict[str, str]
    runtime: str


def opened(family: str, content: bytes, threads: int, name: str = "the file") -> Program:
    """Return the program of a file.

    Args:
      family: of its format, a key of `OPENERS`.
      content: of the file.
      threads: of one call; JAX takes its own.
      name: of the file, for messages.

    Raises:
      MissingRuntimeError: the runtime is not installed.
      UserError: it does not take the file, or the file is not of `kd_jax.export`.
    """
    try:
        program = OPENERS[family](content, threads, name)
        return program._replace(call=_told(program, name))
    except UserError:
        raise
    except ImportError as error:
        raise MissingRuntimeError(
            f"{name} needs a runtime that is not installed here ({in_short(error)}): pip install "
            "'kd_jax[export]'"
        ) from None
    except Exception as error:  # each runtime raises its own kinds
        raise UserError(
            f"{name} cannot be opened as {family} ({in_short(error, 300)}): it is damaged, or not "
            "a file of kd_jax.export; export it again"
        ) from error


def _told(program: Program, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the call of a program, which raises `UserError` where its runtime fails."""

    def call(images: np.ndarray) -> np.ndarray:
        try:
            return program.call(images)
        except Exception as error:  # each runtime raises its own kinds
            raise UserError(
                f"{name} fails in {program.runtime} ({type(error).__name__}: "
                f"{in_short(error, 300)}): it is damaged, not a file of kd_jax.export, or needs "
                "more memory than there is; export it again"
            ) from error

    return call


def _check_form(
    name: str, kind: Any, given: tuple[Any, ...], result: tuple[Any, ...]
) -> tuple[tuple[int, int, int], int]:
    """Return the shape of an image and the number of classes.

    Args:
      name: of the file.
      kind: NumPy's type of the input.
      given, result: shapes; the batch is not looked at.

    Raises:
      UserError: it takes or returns something else than exported files do.
    """
    sizes = (*given[1:], *result[1:])
    is_right = np.dtype(kind) == np.uint8 and len(given) == 4 and given[-1] == 3
    if not is_right or len(result) != 2 or not all(type(size) is int for size in sizes):
        raise UserError(
            f"{name} takes {np.dtype(kind).name} {list(given)} and returns {list(result)}, "
            "expected a file of kd_jax.export: uint8 [n, H, W, 3] to [n, classes]"
        )
    height, width, channels, classes = sizes
    return (height, width, channels), classes


def tflite_interpreter(content: bytes, threads: int) -> Any:
    """Return an interpreter: of LiteRT where it is installed, else of TensorFlow."""
    with quiet_tensorflow.silence():
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            Interpreter = quiet_tensorflow.import_tensorflow().lite.Interpreter  # noqa: N806
        return Interpreter(model_content=content, num_threads=threads)


def _tflite(content: bytes, threads: int, name: str) -> Program:
    interpreter = tflite_interpreter(content, threads)
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    forms = (tuple(map(int, details["shape"])) for details in (given, result))
    shape, num_classes = _check_form(name, given["dtype"], *forms)
    if given["quantization"] not in ((0.0, 0), (1.0, 0)):
        raise UserError(
            f"{name} takes pixels with the step {given['quantization'][0]}, expected the pixels "
            "themselves: it is not a file of kd_jax.export"
        )
    batches: list[int] = []

    def call(images: np.ndarray) -> np.ndarray:
        if batches != [len(images)]:
            interpreter.resize_tensor_input(given["index"], images.shape)
            with quiet_tensorflow.silence():
                interpreter.allocate_tensors()
            batches[:] = [len(images)]
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result["index"]))

    (signature,) = interpreter.get_signature_list().values()
    (output,) = signature["outputs"]
    runtime = "LiteRT" if "ai_edge_litert" in type(interpreter).__module__ else "TensorFlow Lite"
    texts = _texts_of_archive(content)
    return Program(call, shape, num_classes, _known(output), texts, runtime)


def _texts_of_archive(content: bytes) -> dict[str, str]:
    """Return what the archive behind a model of TensorFlow Lite says of it; empty without one.

    Raises:
      Exception: it is damaged.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if FACTS_FILE not in archive.namelist():
            return {}
        texts = json.loads(archive.read(FACTS_FILE))
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{FACTS_FILE} in it holds no texts")
    return texts


def _onnx(content: bytes, threads: int, name: str) -> Program:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    kind = given.type.removeprefix("tensor(").removesuffix(")")
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    shape, num_classes = _check_form(name, kind, tuple(given.shape), tuple(result.shape))

    def call(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([result.name], {given.name: images})[0])

    texts = dict(session.get_modelmeta().custom_metadata_map)
    return Program(call, shape, num_classes, _known(result.name), texts, "ONNX Runtime")


def _stablehlo(content: bytes, threads: int, name: str) -> Program:
    import jax.export

    from kd_jax.export import function

    del threads
    program = jax.export.deserialize(bytearray(content))
    # A call of another function, with an address in the file, could do anything.
    if calls := set(_CUSTOM_CALL.findall(program.mlir_module())) - {"shape_assertion"}:
        raise UserError(
            f"{name} calls functions from outside of it ({', '.join(sorted(calls))[:80]}), which "
            "no file of kd_jax.export does: it is not run"
        )
    (given,), (result,) = program.in_avals, program.out_avals
    shape, num_classes = _check_form(name, given.dtype, given.shape, result.shape)
    call = function.compiled(program.call)
    return Program(call, shape, num_classes, _known(program.fun_name), {}, "JAX")


def _pytorch(content: bytes, threads: int, name: str) -> Program:
    import safetensors.numpy

    from kd_jax import models
    from kd_jax.export import function
    from kd_jax.weights import torch_import

    del threads
    arrays = safetensors.numpy.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    texts = header.get("__metadata__", {})
    missing = {"arch", "num_classes", "image_shape", "mean", "std"} - texts.keys()
    if missing:
        raise UserError(
            f"the header of {name} does not say {', '.join(sorted(missing))}: expected a file of "
            "kd_jax.export; other weights are imported with kd_jax.import_teacher"
        )
    height, width, channels = json.loads(texts["image_shape"])
    shape, num_classes = (height, width, channels), int(texts["num_classes"])
    mean, std = (tuple(json.loads(texts[key])) for key in ("mean", "std"))
    network = models.build(texts["arch"], num_classes, mean, std)
    variables = torch_import.from_state_dict(network, arrays, shape)
    call = function.compiled(function.make(network, variables, function.LOGITS))
    return Program(call, shape, num_classes, function.LOGITS, texts, "JAX")


def _known(name: str) -> str | None:
    return name if name in _OUTPUTS else None


OPENERS: dict[str, Callable[[bytes, int, str], Program]] = {
    "tflite": _tflite,
    "onnx": _onnx,
    "stablehlo": _stablehlo,
    "pytorch": _pytorch,
}
