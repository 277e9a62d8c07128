"""The card beside an exported file: what the file is, how good it is, and what it is not good for.

`FILE.card.json` for programs, `FILE.card.md` for people; both say the same.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import kd_jax
from kd_jax import models
from kd_jax.export import function, tflite_file
from kd_jax.export.formats import Format
from kd_jax.export.source import Source
from kd_jax.export.verification import Reference
from kd_jax.runtime import processor, text_tables

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "safetensors", "onnx", "onnxruntime", "tensorflow",
             "tensorflow-cpu", "ai-edge-litert")  # fmt: skip
_MOST_CLASSES = 100  # in the table of the card for people
_TEACHER = ("arch", "source", "sha256", "top1", "top5", "nll", "ece", "examples", "split")
_OF_TEACHER = {
    "agreement": "same class as the teacher %",
    "agreement_top5": "the teacher's class among the first five %",
    "kl_to_teacher": "KL to the teacher, nats",
}
_INPUT = "uint8 [n, {}, {}, {}], RGB, 0 to 255"


def make(
    source: Source,
    entry: Format,
    outputs: str,
    expected: Reference,
    measures: dict[str, Any],
    latency: dict[str, Any] | None,
    file: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of `FILE.card.json`.

    Args:
      source: the network.
      entry: the format.
      outputs: `logits` or `probabilities`.
      expected: what the file was compared with.
      measures: as `verification.measure` returns them.
      latency: as `latency.measure` returns it; None for a file that runs nowhere by itself.
      file: `name`, `bytes` and `sha256`.
    """
    card, network, dataset = source.card, source.network, source.dataset
    is_arrays = latency is None
    names = card.class_names or [str(number) for number in range(card.num_classes)]
    teacher = source.teacher
    per_class = measures["per_class"]
    return {
        "file": {**file, "format": entry.name, "runtime": entry.runtime},
        "input": "arrays of weights only" if is_arrays else _INPUT.format(*card.image_shape),
        "normalisation": {
            "mean": list(card.mean),
            "std": list(card.std),
            "of": "pixels in [0, 1]",
            "inside": not is_arrays,
        },
        "outputs": f"those of the class that loads them: {function.LOGITS}" if is_arrays else
                   f"{outputs}, float32 [n, {card.num_classes}]",
        "class_names": list(card.class_names) if card.class_names else None,
        "network": {
            "arch": card.arch,
            "params": models.count_params(network, card.image_shape),
            "madds": models.count_madds(network, card.image_shape),
            "source": card.source,
            "step": source.step,
            "sha256": card.arrays_sha256,
        },
        "dataset": {
            "name": dataset.name,
            "classes": dataset.num_classes,
            "image_shape": list(dataset.image_shape),
            "fingerprint": dataset.fingerprint,
            "split": "test",
            "examples": expected.split_size,
            "verified": len(expected.labels),
        },
        "teacher": teacher and _certificate(teacher),
        "training": source.training,
        "quantisation": _quantisation(source) if entry.is_int8 else None,
        "measures": {name: value for name, value in measures.items() if name != "per_class"},
        "per_class": dict(zip(names, per_class, strict=True)),
        "tolerance": entry.tolerance._asdict(),
        "latency": latency,
        "machine": {
            "processor": processor.describe(),
            "model": processor.model(),
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": processor.cores(),
        },
        "versions": _versions(),
        "limits": [
            entry.limits,
            *_limits_of_numbers(source, entry.is_int8),
            *_limits(source, expected, is_arrays),
        ],
    }  # fmt: skip


def _certificate(teacher: dict[str, Any]) -> dict[str, Any]:
    """Return what a card says of a teacher; of several also of each."""
    said = {name: teacher[name] for name in _TEACHER if name in teacher}
    if members := teacher.get("members"):
        said["members"] = [_certificate(member) for member in members]
    return said


def _quantisation(source: Source) -> dict[str, Any]:
    """Return where the ranges of an int8 file are from."""
    if source.is_quantized:
        return {"ranges": "trained", "images": None, "split": "train"}
    count = len(tflite_file.calibration_indices(source)) + 1
    return {"ranges": "measured after training", "images": count, "split": "train"}


def _limits_of_numbers(source: Source, is_int8: bool) -> list[str]:
    """Return what a reader must know of the numbers that a file computes with."""
    if is_int8 and not source.is_quantized:
        return [
            "Quantised after training, with the ranges that training images have, and not trained "
            "again."
        ]
    if is_int8:
        return ["The last part of training was with the int8 numbers of this file."]
    if source.was_quantized:
        return [
            "The network was trained with int8's numbers. This file has its weights as they are, "
            "without that rounding, so it answers a little differently from the network that the "
            "run measured."
        ]
    return []


def _versions() -> dict[str, str]:
    versions = {"kd_jax": kd_jax.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _limits(source: Source, expected: Reference, is_arrays: bool) -> list[str]:
    """Return what is true of any file of this network, a sentence each."""
    latency = (
        "Latency is of one process on the CPU named here, without reading and resizing images."
    )
    height, width, channels = source.card.image_shape
    per_class = len(expected.labels) / source.dataset.num_classes
    return [
        f"Measured on {len(expected.labels):,} of {expected.split_size:,} test images of "
        f"{source.dataset.name}; nothing is known of images from elsewhere.",
        f"An image must have {height} x {width} pixels and {channels} channels in the order red, "
        "green, blue. How it is brought to that size is the caller's choice and changes the "
        "accuracy.",
        f"Every image gets one of {source.card.num_classes} classes, whatever it shows: there is "
        "no output for none of them.",
        f"The accuracy of a class rests on about {per_class:.0f} images.",
        *([] if is_arrays else [latency]),
    ]


def markdown(card: dict[str, Any]) -> str:
    """Return the content of `FILE.card.md`.

    Args:
      card: as `make` returns it.
    """
    file, network, dataset = card["file"], card["network"], card["dataset"]
    measures, normalisation = card["measures"], card["normalisation"]
    float_top1 = measures.get("float_top1")
    where = "inside the file" if normalisation["inside"] else "not in the file: the caller does it"
    step = f", step {network['step']:,}" if network["step"] is not None else ""
    rows = [
        ["what", "value"],
        ["format", f"{file['format']}, {file['bytes']:,} bytes"],
        ["sha256", file["sha256"]],
        ["network", f"{network['arch']}, {network['params']:,} parameters, "
                    f"{network['madds']:,} multiply-adds an image"],
        ["from", f"{network['source']}{step}"],
        ["input", card["input"]],
        ["normalisation", f"(pixels / 255 - mean) / std with mean {normalisation['mean']}, std "
                          f"{normalisation['std']}; {where}"],
        ["output", card["outputs"]],
        ["data set", f"{dataset['name']}, {dataset['classes']} classes"],
        ["of the data, the network", f"fingerprint {dataset['fingerprint'][:16]}, sha256 "
                                     f"{network['sha256'][:16]}"],
        ["teacher", _teacher(card["teacher"])],
        ["training", _training(card["training"])],
        *_quantisation_row(card["quantisation"]),
    ]  # fmt: skip
    results = [
        ["measure", "this file", "the network" if float_top1 else "the network in float32"],
        ["top-1 %", f"{measures['top1']:.2f}", f"{measures['network_top1']:.2f}"],
        *([["top-1 % without rounding", "", f"{float_top1:.2f}"]] if float_top1 else []),
        ["top-5 %", f"{measures['top5']:.2f}", ""],
        ["ECE %", f"{measures['ece']:.2f}", f"{measures['network_ece']:.2f}"],
        ["same class as the network %", f"{measures['agreement']:.2f}", ""],
        ["largest difference of a probability", f"{measures['largest_difference']:.2g}", ""],
    ]
    fidelity = (card["training"] or {}).get("fidelity") or {}
    # These were measured by the run, whatever the file was verified on.
    results += [
        [f"{_OF_TEACHER[name]}, whole test split", "", f"{value:.4g}"]
        for name, value in fidelity.items()
    ]
    parts = [
        f"# {file['name']}",
        text_tables.markdown(rows, names=2),
        f"## Accuracy\nOn {measured_on(card)}, by {file['runtime']}.\n\n"
        f"{text_tables.markdown(results)}",
        f"## Latency\n{_latency(card)}",
        "## Limits\n" + "\n".join(f"- {limit}" for limit in card["limits"]),
        f"## Accuracy by class\n{_per_class(card['per_class'])}",
        *_classes(card["class_names"]),
        "## Versions\n" + ", ".join(f"{name} {v}" for name, v in card["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def measured_on(card: dict[str, Any]) -> str:
    """Return in words which images the measures of a card are of."""
    verified, examples = card["dataset"]["verified"], card["dataset"]["examples"]
    if verified == examples:
        return f"all {examples:,} test images"
    return (
        f"{verified:,} of {examples:,} test images, each class in proportion (--images), and not "
        "the whole test split"
    )


def _quantisation_row(quantisation: dict[str, Any] | None) -> list[list[str]]:
    if quantisation is None:
        return []
    images = f" on {quantisation['images']} training images" if quantisation["images"] else ""
    return [["ranges of int8", f"{quantisation['ranges']}{images}"]]


def _teacher(teacher: dict[str, Any] | None) -> str:
    if teacher is None:
        return "none, or none that is known"
    top1 = f", {teacher['top1']:.2f} % top-1" if "top1" in teacher else ""
    examples = f" on {teacher['examples']:,} test images" if "examples" in teacher else ""
    return f"{teacher['arch']}, sha256 {teacher.get('sha256', '')[:16]}{top1}{examples}"


def _training(training: dict[str, Any] | None) -> str:
    """Return how long a network was trained, and where the config is not the default."""
    if training is None:
        return "not known: the network was not trained by a run that is here"
    length = "" if training["steps"] is None else f"{training['steps']:,} steps"
    if training["epochs"] is not None:
        length += f", {training['epochs']:g} epochs"
    fields = ", ".join(f"{path}={value}" for path, value in training["fields"].items())
    return _cell("; ".join(filter(None, [length, fields or "the default config"])))


def _latency(card: dict[str, Any]) -> str:
    machine = card["machine"]
    if card["latency"] is None:
        return "None: arrays do not run. It is that of the program that loads them."
    rows = [["images at once", "p50 ms", "p95 ms", "runs"]]
    rows += [
        [batch, f"{times['p50_ms']:.3f}", f"{times['p95_ms']:.3f}", str(times["runs"])]
        for batch, times in card["latency"]["batches"].items()
    ]
    return (
        f"{machine['model'] or machine['architecture']}, processor class {machine['processor']}, "
        f"{card['latency']['threads']} threads, {card['file']['runtime']}.\n\n"
        + text_tables.markdown(rows, names=0)
    )


def _per_class(per_class: dict[str, float | None]) -> str:
    measured = sorted((value, name) for name, value in per_class.items() if value is not None)
    rows = [["class", "correct %"], *([_cell(name), f"{v:.1f}"] for v, name in measured)]
    if len(measured) <= _MOST_CLASSES:
        return "The worst first.\n\n" + text_tables.markdown(rows)
    return (
        f"The worst {_MOST_CLASSES} of {len(measured)}; all are in the card for programs.\n\n"
        + text_tables.markdown(rows[: _MOST_CLASSES + 1])
    )


def _classes(names: list[str] | None) -> list[str]:
    """Return the section that says which class each output is; none where nobody knows."""
    if not names:
        return []
    listed = ", ".join(f"{number} {_cell(name)}" for number, name in enumerate(names))
    return [f"## Classes\nThe outputs in their order, from 0: {listed}."]


def _cell(name: str) -> str:
    return name.replace("|", "\\|")
