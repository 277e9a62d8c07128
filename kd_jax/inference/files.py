"""Exported files as classifiers, each run by its own runtime.

The names of the classes come from the card beside a file (`FILE.card.json`), or from inside it.
LiteRT's and ONNX Runtime's files need no JAX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kd_jax.data import folder_tree
from kd_jax.export import formats, runtimes
from kd_jax.inference import cards
from kd_jax.inference.cards import Card
from kd_jax.inference.classifier import Classifier
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

# In the order in which one is taken out of a folder of all formats: what starts fastest first.
_FAMILIES = {
    ".tflite": "tflite",
    ".onnx": "onnx",
    ".stablehlo": "stablehlo",
    ".safetensors": "pytorch",
}
_REDUCED = ("-float16", "-int8")  # endings of the names in such a folder


def exported_in(directory: Path) -> list[Path]:
    """Return the exported files in a directory, the one to take first at the head."""

    def rank(path: Path) -> tuple[bool, int, str]:
        return path.stem.endswith(_REDUCED), list(_FAMILIES).index(path.suffix), path.name

    return sorted((path for path in directory.iterdir() if path.suffix in _FAMILIES), key=rank)


def open_folder(directory: Path, threads: int) -> Classifier:
    """Return the network in a folder of all formats: the first file whose runtime is here.

    Raises:
      UserError: files of several networks are there, one is damaged, or none can be run.
    """
    paths = exported_in(directory)
    stems = {path.stem for path in paths}
    stems = {next((s.removesuffix(e) for e in _REDUCED if s.endswith(e)), s) for s in stems}
    if len(stems) > 1:
        raise UserError(
            f"{directory} holds files of several networks ({', '.join(sorted(stems))}): name one "
            f"of its files, such as {paths[0]}"
        )
    problems = []
    for path in paths:
        try:
            return open_file(path, threads)
        except runtimes.MissingRuntimeError as error:  # what is damaged is not passed over
            logger.warning("passed over: %s", error)
            problems.append(str(error))
    raise UserError(f"no file in {directory} can be run: {problems[0]}")


def open_file(path: Path, threads: int) -> Classifier:
    """Return the network in an exported file.

    Args:
      path: of the file.
      threads: of one call, where the runtime lets one choose.

    Raises:
      UserError: it is not a file of `kd_jax.export`, is damaged, has the card of another, or its
        runtime is not installed.
    """
    shown = folder_tree.shown(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{shown} cannot be read ({error.strerror}): expected a file") from None
    found = cards.beside(path, content)
    card = found or Card()
    family = card.family or _family(path, content)
    if family in ("stablehlo", "pytorch"):
        from kd_jax.runtime import devices

        devices.prepare(1, 1)
    program = runtimes.opened(family, content, threads, shown)
    outputs = program.outputs or card.outputs
    if outputs is None:
        raise UserError(
            f"{shown} does not say whether it returns logits or probabilities: put its card "
            f"({path.name}{formats.CARD_ENDING}) beside it, or export it again"
        )
    names = card.class_names or _names_inside(program.texts, shown)
    if names is None and found is None:
        logger.warning(
            "%s holds no names of classes, and no card (%s%s) lies beside it",
            *(shown, path.name, formats.CARD_ENDING),
        )
    if names is not None and len(names) != program.num_classes:
        raise UserError(
            f"{shown} has {program.num_classes} classes, and {len(names)} names of them are given: "
            "export it again"
        )
    return Classifier(
        name=path.name,
        origin=f"a file of {program.texts.get('arch') or card.arch or 'a network'} run by "
               f"{program.runtime}",
        image_shape=program.image_shape,
        num_classes=program.num_classes,
        class_names=names,
        call=program.call,
        outputs=outputs,
        facts={
            "runtime": program.runtime,
            "params": card.params,
            "bytes": len(content),
            "top1": card.top1,
            "top1_of": card.top1_of,
        },
    )  # fmt: skip


def _family(path: Path, content: bytes) -> str:
    """Return which runtime family a file is of: as its name says, or its first bytes.

    Raises:
      UserError: nothing tells it.
    """
    if path.suffix.lower() in _FAMILIES:
        return _FAMILIES[path.suffix.lower()]
    if content[4:8] == b"TFL3":
        return "tflite"
    raise UserError(
        f"{folder_tree.shown(str(path))} is not known to be an exported file: expected the workdir "
        f"of a run, or a file that ends in {', '.join(_FAMILIES)}"
    )


def _names_inside(texts: Mapping[str, str], shown: str) -> tuple[str, ...] | None:
    """Return the names of the classes that a file holds; None where it holds none.

    Raises:
      UserError: what it holds are no names.
    """
    text = texts.get("class_names", "null")
    try:
        names = json.loads(text)
        if names is None:
            return None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    except (ValueError, RecursionError):
        pass
    raise UserError(
        f"{shown} holds {text[:60]!r} as the names of its classes, expected a list of texts: it is "
        "damaged, or not a file of kd_jax.export; export it again"
    )
