"""Teachers in one file that is network and weights at once: ONNX and Keras."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, in_short, reachable
from kd_jax.teachers import foreign
from kd_jax.teachers.teacher import ForeignNetwork

_CHUNK = 64  # images at a time, where the file leaves it open


def onnx(name: str, file: str) -> ForeignNetwork:
    """Return the network of an ONNX file, run by onnxruntime.

    Its input is float32 or uint8, `[n, 3, H, W]` or `[n, H, W, 3]`. A uint8 input takes pixels from
    0 to 255, so the file normalises them itself, and mixed pixels are rounded.

    Args:
      name: for messages.
      file: path of the file.

    Raises:
      UserError: it is no such file.
    """
    runtime, path = foreign.package("onnx"), _existing(file, "onnx")
    try:
        session = runtime.InferenceSession(str(path), providers=runtime.get_available_providers())
    except Exception as error:  # onnxruntime has its own, which are not exported
        raise UserError(f"{path} is no ONNX network ({in_short(error, 300)})") from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = ", ".join(f"{each.name} {each.shape}" for each in inputs)
        raise UserError(f"{path} has the inputs {shapes}: expected one, a batch of images")
    shape, kind = inputs[0].shape, inputs[0].type
    if kind not in ("tensor(float)", "tensor(uint8)") or 3 not in (shape[1], shape[3]):
        raise UserError(
            f"{path} takes {kind} {shape}: expected float or uint8 of 3 channels, first or last"
        )
    has_channels_first, is_bytes = shape[1] == 3, kind == "tensor(uint8)"
    batch = shape[0] if isinstance(shape[0], int) else None
    size = shape[2] if isinstance(shape[2], int) else 0

    def one(images: np.ndarray) -> np.ndarray:
        images = np.round(images).astype(np.uint8) if is_bytes else images
        images = images.transpose(0, 3, 1, 2) if has_channels_first else images
        return session.run(None, {inputs[0].name: np.ascontiguousarray(images)})[0]

    facts: dict[str, Any] = {"input_size": size}
    if is_bytes:
        facts |= {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    digest = atomic_files.sha256_of(path)
    return ForeignNetwork(name, path.name, digest, call=_in_chunks(one, batch), **facts)


def keras(name: str, file: str) -> ForeignNetwork:
    """Return the network of a Keras file (`.keras` or `.h5`), under the backend that Keras has.

    Args:
      name: for messages.
      file: path of the file. Lambda layers, which hold code, are refused by Keras.

    Raises:
      UserError: it is no such file.
    """
    library, path = foreign.package("keras"), _existing(file, "keras")
    try:
        model = library.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises ValueError, OSError, TypeError and others
        raise UserError(f"{path} is no Keras network ({in_short(error, 300)})") from None
    return of_keras_model(model, name, path.name)


def of_keras_model(model: Any, name: str, source: str, **facts: Any) -> ForeignNetwork:
    """Return a Keras model as a teacher.

    Args:
      model: a `keras.Model` of one input, images `[n, H, W, 3]`.
      name: for messages.
      source: where it comes from.
      facts: further fields of `ForeignNetwork`.

    Raises:
      UserError: its input is another.
    """
    library, shape = foreign.package("keras"), model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 3:
        raise UserError(f"{name} takes {shape}: expected images [n, H, W, 3]")
    digest = hashlib.sha256(model.to_json().encode())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype} {weight.shape}\n".encode())
        digest.update(np.ascontiguousarray(weight).tobytes())

    def one(images: np.ndarray) -> np.ndarray:
        return library.ops.convert_to_numpy(model(images, training=False))

    call = _in_chunks(one, shape[0])
    size = {"input_size": shape[1] or 0}
    return ForeignNetwork(name, source, digest.hexdigest(), call=call, **{**size, **facts})


def _existing(file: str, kind: str) -> Path:
    path = reachable(file, "the file of config.teacher.weights")
    if not path.is_file():
        raise UserError(f"no file {path}: expected that of config.teacher.weights={kind}:FILE")
    return path


def _in_chunks(
    one: Callable[[np.ndarray], np.ndarray], batch: int | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of any number of images, from one of `batch`, or of a few."""
    size = batch or _CHUNK

    def call(images: np.ndarray) -> np.ndarray:
        answers = []
        for first in range(0, len(images), size):
            chunk = images[first : first + size]
            count = len(chunk)
            if batch and count < batch:  # a file for exactly so many
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch - count, axis=0)])
            answers.append(np.asarray(one(chunk))[:count])
        return np.concatenate(answers)

    return call
