"""Classify images with a network that was trained here.

    python -m kd_jax.predict --model=DIR IMAGE_OR_FOLDER ... [--top=5] [--json] [--compare]

DIR is the workdir of a run, or any directory with `model.json` and `model.safetensors`. Images of
any kind and size are brought to the network's size as those of a folder are for training. An image
that cannot be read is told in a sentence on stderr, the others go on, and the exit code is then 2.
`--compare` shows what the teacher of the run says beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from kd_jax.data import folder_tree, loose_images
from kd_jax.runtime import errors, huge_pages, text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, run_command

_MODEL = flags.DEFINE_string("model", None, "Directory of the run, or of a stored network.")
_TOP = flags.DEFINE_integer("top", 5, "Classes to show of each image.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object for each image, one a line.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint",
    "kept",
    ["kept", "best", "last"],
    "The network that the finished run kept; or its checkpoint that is best on val, or the newest.",
)
_COMPARE = flags.DEFINE_bool("compare", False, "Show the answers of the run's teacher too.")
_BATCH = 64  # images that are looked at together
_EXIT_READER_GONE = 141  # what a shell gives for a command that SIGPIPE ended


def main(argv: Sequence[str]) -> None:
    """Print the most probable classes of each image."""
    model = _MODEL.value
    if not model:
        raise UserError(
            "--model is missing: expected the workdir of a run, or a directory with model.json"
        )
    places = list(argv[1:])
    if not places:
        raise UserError("no image is named: expected images, or folders of them, as arguments")
    files = loose_images.find(places)
    if all(file.problem for file in files):
        for file in files:
            errors.tell(file.problem)
        sys.exit(errors.EXIT_USER_ERROR)
    try:
        is_whole = _classify(model, files)
    except BrokenPipeError:  # such as `head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_EXIT_READER_GONE)
    if not is_whole:
        sys.exit(errors.EXIT_USER_ERROR)


def _classify(model: str, files: Sequence[loose_images.LooseImage]) -> bool:
    """Print the answer to each image; return whether all could be read."""
    from kd_jax.training import classifier

    stored = classifier.find(model, _CHECKPOINT.value, with_teachers=_COMPARE.value)
    height, width = stored.image_shape[:2]
    logger.info(
        "%s: %s of %d classes, images of %d x %d pixels; %s",
        *(model, stored.network.arch, stored.network.num_classes, height, width),
        stored.origin,
    )
    names = stored.class_names
    if names is None:
        logger.warning("the classes of %s have no names: their numbers are shown", model)
        names = tuple(map(str, range(stored.network.num_classes)))
    # A batch is filled up to its size, so a few images are not made many.
    network = classifier.Classifier(stored, min(_BATCH, 1 << (len(files) - 1).bit_length()))
    page = _JsonLines() if _JSON.value else _Table(files, names)
    choices: dict[str, list[int]] = {}
    is_whole = True
    for first in range(0, len(files), _BATCH):
        batch, images = loose_images.read(files[first : first + _BATCH], (height, width))
        probabilities = {"student": network.probabilities(images)} if len(images) else {}
        if _COMPARE.value and len(images):
            probabilities["teacher"] = network.teacher_probabilities(images)
        rows = iter(range(len(images)))
        for file in batch:
            if file.problem:
                is_whole = False
                page.problem(file)
                continue
            row = next(rows)
            answers = {who: _top(of[row], names) for who, of in probabilities.items()}
            page.answer(file, answers)
            for who, answer in answers.items():
                choices.setdefault(who, []).append(answer[0].label)
    if _COMPARE.value and choices:
        pairs = list(zip(choices["student"], choices["teacher"], strict=True))
        agreements = sum(first == second for first, second in pairs)
        logger.info(
            "student and teacher choose the same class for %d of %d", agreements, len(pairs)
        )
    return is_whole


class _Choice(NamedTuple):
    """A class that a network finds probable, in [0, 1]."""

    label: int
    name: str
    probability: float


def _top(probabilities: Any, names: Sequence[str]) -> list[_Choice]:
    """Return the most probable classes, the first one first; of equals the lower label."""
    order = sorted(range(len(names)), key=lambda label: -probabilities[label])[: _TOP.value]
    return [_Choice(label, names[label], float(probabilities[label])) for label in order]


class _JsonLines:
    """Prints an object for each image."""

    _FIELDS = {"student": "top", "teacher": "teacher_top"}

    def answer(self, file: loose_images.LooseImage, answers: dict[str, list[_Choice]]) -> None:
        record: dict[str, Any] = {"image": str(file.path), "checkpoint": _CHECKPOINT.value}
        for who, choices in answers.items():
            record[self._FIELDS[who]] = [
                {"label": c.label, "class": c.name, "probability": round(c.probability, 6)}
                for c in choices
            ]
        print(json.dumps(record), flush=True)

    def problem(self, file: loose_images.LooseImage) -> None:
        print(json.dumps({"image": str(file.path), "error": file.problem}), flush=True)
        errors.tell(file.problem)


class _Table:
    """Prints a table, a row for each choice of each image, while images are looked at."""

    def __init__(self, files: Sequence[loose_images.LooseImage], names: Sequence[str]):
        width = text_tables.width
        self._name_width = max(width("student"), *(width(folder_tree.shown(n)) for n in names))
        self._path_width = max(width("image"), *(width(file.name) for file in files))
        self._has_head = False

    def answer(self, file: loose_images.LooseImage, answers: dict[str, list[_Choice]]) -> None:
        widths = [self._path_width, *([self._name_width, len("100.00")] * len(answers))]
        is_name = [True, *([True, False] * len(answers))]
        if not self._has_head:
            titles = list(answers) if len(answers) > 1 else ["class"]
            head = ["image", *(cell for title in titles for cell in (title, "%"))]
            print(text_tables.top(head, widths, is_name))
            self._has_head = True
        for rank, choices in enumerate(zip(*answers.values(), strict=True)):
            cells = [
                cell
                for choice in choices
                for cell in (folder_tree.shown(choice.name), f"{100 * choice.probability:.2f}")
            ]
            print(text_tables.line([file.name if rank == 0 else "", *cells], widths, is_name))
        sys.stdout.flush()

    def problem(self, file: loose_images.LooseImage) -> None:
        errors.tell(file.problem)


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main, takes_words=True)
