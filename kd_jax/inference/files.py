"""Exported files as classifiers, each run by its own runtime.

The names of the classes come from the card beside a file (`FILE.card.json`), or from inside it.
LiteRT's and ONNX Runtime's files need no JAX.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.data import folder_tree
from kd_jax.export import formats, runtimes
from kd_jax.inference.classifier import Classifier
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, in_short

CARD_ENDING = ".card.json"
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
      UserError: files of several networks are there, or none can be run.
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
        except UserError as error:
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
    card = _card_beside(path, content)
    family = _family(path, content, card)
    if family in ("stablehlo", "pytorch"):
        from kd_jax.runtime import devices

        devices.prepare(1, 1)
    program = runtimes.opened(family, content, threads, shown)
    outputs = program.outputs or _outputs_of(card)
    if outputs is None:
        raise UserError(
            f"{shown} does not say whether it returns logits or probabilities: put its card "
            f"({path.name}{CARD_ENDING}) beside it, or export it again"
        )
    names = card.get("class_names") or _names_inside(program.texts)
    if names is None and not card:
        logger.warning(
            "%s holds no names of classes, and no card (%s%s) lies beside it",
            *(shown, path.name, CARD_ENDING),
        )
    if names is not None and len(names) != program.num_classes:
        raise UserError(
            f"{shown} has {program.num_classes} classes, and {len(names)} names of them are given: "
            "export it again"
        )
    network, measures = card.get("network", {}), card.get("measures", {})
    return Classifier(
        name=path.name,
        origin=f"a file of {program.texts.get('arch') or network.get('arch', 'a network')} run by "
               f"{program.runtime}",
        image_shape=program.image_shape,
        num_classes=program.num_classes,
        class_names=None if names is None else tuple(names),
        call=program.call,
        outputs=outputs,
        facts={
            "runtime": program.runtime,
            "params": network.get("params"),
            "bytes": len(content),
            "top1": measures.get("top1"),
        },
    )  # fmt: skip


def _card_beside(path: Path, content: bytes) -> Mapping[str, Any]:
    """Return the card of a file; empty where there is none.

    Raises:
      UserError: it is damaged, or that of another file.
    """
    beside = path.with_name(f"{path.name}{CARD_ENDING}")
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
        sha256 = card["file"]["sha256"]
        names = card["class_names"]
        is_right = names is None or all(isinstance(name, str) for name in names)
        if not is_right or not all(isinstance(card[p], dict) for p in ("network", "measures")):
            raise ValueError("a field has another type")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{beside} is not the card of an exported file ({in_short(error)}): export the file "
            "again, or take the card away"
        ) from None
    if sha256 != hashlib.sha256(content).hexdigest():
        raise UserError(
            f"{path} is not the file that the card beside it describes (another sha256): export it "
            f"again, or take {beside.name} away"
        )
    return dict(card)


def _family(path: Path, content: bytes, card: Mapping[str, Any]) -> str:
    """Return which runtime family a file is of: as its card says, its name, or its first bytes.

    Raises:
      UserError: nothing tells it.
    """
    entry = formats.FORMATS.get(card.get("file", {}).get("format"))
    if entry is not None:
        return entry.family
    if path.suffix.lower() in _FAMILIES:
        return _FAMILIES[path.suffix.lower()]
    if content[4:8] == b"TFL3":
        return "tflite"
    raise UserError(
        f"{folder_tree.shown(str(path))} is not known to be an exported file: expected the workdir "
        f"of a run, or a file that ends in {', '.join(_FAMILIES)}"
    )


def _outputs_of(card: Mapping[str, Any]) -> str | None:
    kind = str(card.get("outputs", "")).partition(",")[0]
    return kind if kind in ("logits", "probabilities") else None


def _names_inside(texts: Mapping[str, str]) -> list[str] | None:
    """Return the names of the classes that a file holds; None where it holds none."""
    try:
        names = json.loads(texts.get("class_names", "null"))
    except ValueError:
        return None
    is_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_names else None
