"""What a network of the zoo takes as a file: its bytes and its latency, float32 and int8.

The weights are random: neither depends on them.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import jax
import numpy as np

from kd_jax import models
from kd_jax.data.dataset import DataSet
from kd_jax.data.splits import Split
from kd_jax.export import latency, runtimes, tflite_file
from kd_jax.export.source import Source
from kd_jax.runtime import devices
from kd_jax.training.local_predictor import LocalPredictor
from kd_jax.weights import saved_network

JAX = "JAX"  # the runtime where no file can be written
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_IMAGES = 24  # on which ranges for int8 are measured


class Measured(NamedTuple):
    """A file.

    Attributes:
      bytes: of it; None where there is none, and the network runs in JAX.
      p50_ms: median latency of one image, in milliseconds.
      runtime: what ran it, for people.
    """

    bytes: int | None
    p50_ms: float
    runtime: str


def has_runtime() -> bool:
    """Tell whether files of TensorFlow Lite can be written and run here."""
    return importlib.util.find_spec("tensorflow") is not None


def measure(arch: str, num_classes: int, image_size: int, threads: int) -> dict[str, Measured]:
    """Return what a network takes as a file of TensorFlow Lite, `float32` and `int8`.

    Where TensorFlow is not installed it runs in JAX, in float32 only.

    Args:
      arch: name in the zoo.
      num_classes: width of its head.
      image_size: height and width of its images.
      threads: of one call.

    Raises:
      UserError: TensorFlow's converter does not take it.
    """
    devices.prepare(1, 1)
    source = _random(arch, num_classes, image_size)
    images = source.dataset.test.images
    if not has_runtime():
        predictor = LocalPredictor(source.network.logits, source.variables)
        times = latency.of_batch(predictor.logits, images, 1)
        return {"float32": Measured(None, times["p50_ms"], JAX)}
    measured = {}
    for numbers in (tflite_file.FLOAT32, tflite_file.INT8):
        content = tflite_file.content(source, "logits", numbers)
        program = runtimes.opened("tflite", content, threads, arch)
        times = latency.of_batch(program.call, images, 1)
        measured[numbers] = Measured(len(content), times["p50_ms"], program.runtime)
        jax.clear_caches()
    return measured


def _random(arch: str, num_classes: int, image_size: int) -> Source:
    """Return a network with random weights, and random images."""
    network = models.build(arch, num_classes, _MEAN, _STD)
    shape = (image_size, image_size, 3)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_IMAGES, *shape), np.uint8)
    split = Split(images, np.arange(_IMAGES, dtype=np.int32) % num_classes)
    data = DataSet("random", split, split, split, num_classes, _MEAN, _STD, "random")
    card = saved_network.ModelCard(
        arch, num_classes, shape, _MEAN, _STD, "random", None, "random weights", ""
    )
    variables = network.init(0, shape)
    return Source(card, variables, data, tuple(range(num_classes)), None, None)
