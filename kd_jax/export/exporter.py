"""Write one file, run it, compare it with the network, and give it its name only if it is right."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from kd_jax.export import (
    card,
    function,
    latency,
    onnx_file,
    pytorch_file,
    runtimes,
    stablehlo_file,
    tflite_file,
    verification,
)
from kd_jax.export.formats import ARRAYS, CARD_ENDING, Format
from kd_jax.export.source import Source
from kd_jax.export.verification import Reference
from kd_jax.runtime import atomic_files, processor
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import DivergedError, UserError

# Each has `content(source, outputs, **arguments)`, the bytes of a file; `runtimes` opens it.
FAMILIES: dict[str, Any] = {
    "pytorch": pytorch_file,
    "stablehlo": stablehlo_file,
    "onnx": onnx_file,
    "tflite": tflite_file,
}


class MissedError(UserError):
    """A file does not answer as its network does."""


def export(
    source: Source, entry: Format, outputs: str, expected: Reference, out: Path
) -> dict[str, Any]:
    """Write a verified file and its two cards; return the content of the card.

    The file is written and run under another name. What misses the tolerance is removed. Of a
    network that was trained with int8's numbers an int8 file has the ranges, and is compared with
    it; all others have its weights as they are, and are compared with those.

    Args:
      source: the network.
      entry: the format.
      outputs: `logits` or `probabilities`.
      expected: the images to verify on, with the network's answers.
      out: path of the file.

    Raises:
      MissedError: the file does not keep the tolerance of its format.
      UserError: the network has no such form, or the file cannot be written.
    """
    if source.is_quantized and not entry.is_int8:
        source, expected = source.in_floats(), expected.in_floats()
    logger.info("writing %s", out)
    content = FAMILIES[entry.family].content(source, outputs, **entry.arguments)
    # Weights are loaded by a class that returns logits, whatever was asked for.
    kind = function.LOGITS if entry.name == ARRAYS else outputs
    try:
        with atomic_files.replacing(out) as file:
            file.write(content)
            file.flush()
            described = _verify(source, entry, kind, expected, Path(file.name), out.name)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): make room there, or choose another place"
        ) from error
    atomic_files.write_json(out.with_name(f"{out.name}{CARD_ENDING}"), described)
    text = card.markdown(described)
    atomic_files.write_whole(out.with_name(f"{out.name}.card.md"), text.encode())
    return described


def _verify(
    source: Source, entry: Format, outputs: str, expected: Reference, path: Path, name: str
) -> dict[str, Any]:
    """Return the card of a file that answers as its network does.

    Raises:
      MissedError: it does not.
    """
    threads = processor.cores()
    content = path.read_bytes()
    call = runtimes.opened(entry.family, content, threads, name).call
    answers = function.in_batches(call, expected.images)
    try:
        measures = verification.measure(answers, outputs, expected)
        missed = verification.miss(measures, entry.tolerance)
    except DivergedError as error:
        missed = f"{error}"
    if missed:
        raise MissedError(
            f"the {entry.name} file of {source.card.arch} is not kept, because on "
            f"{len(expected.labels):,} test images {missed}: take another format"
        )
    times = None
    if entry.name != ARRAYS:
        times = {"threads": threads, "batches": latency.measure(call, expected.images)}
    file = {
        "name": name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return card.make(source, entry, outputs, expected, measures, times, file)
