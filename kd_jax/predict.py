"""Classify images with a network that was trained here, or with a file that was exported.

    python -m kd_jax.predict --model=PLACE IMAGE_OR_FOLDER ... [--top=5] [--json] [--compare]

PLACE is the workdir of a run, any directory with `model.json` and `model.safetensors`, a file of
kd_jax.export, which its own runtime runs, or a folder of such files. Images of any kind and size
are brought to the network's size as those of a folder are for training. What cannot be read is
told in a sentence on stderr (the first ten, and how many), the others go on, and the exit code is
then 2. `--compare` shows what the teacher of the run says beside it, `--compare=PLACE` what another
network says. `--picture=FILE.png` draws the images and the answers.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from kd_jax.data import folder_tree, image_files, loose_images
from kd_jax.inference import opening
from kd_jax.inference.classifier import Choice, Classifier, is_same
from kd_jax.runtime import atomic_files, errors, huge_pages, processor, text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, run_command

_OWN_TEACHER, _NO_TEACHER = ("true", "1", "yes"), ("false", "0", "no", "")


class _PlaceFlag(flags.Flag[str]):
    """A flag that may stand alone, or have a place as its value."""

    def __init__(self, name: str, text: str):
        super().__init__(flags.ArgumentParser(), flags.ArgumentSerializer(), name, None, text)
        self.boolean = True  # absl then asks for no value, and gives "true"


_MODEL = flags.DEFINE_string(
    "model", None, "Directory of a run or a stored network, an exported file, or a folder of them."
)
_TOP = flags.DEFINE_integer("top", 5, "Classes to show of each image.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object for each image, one a line.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint",
    opening.KEPT,
    [opening.KEPT, "best", "last"],
    "The network that the finished run kept; or its checkpoint that is best on val, or the newest.",
)
_COMPARE = flags.DEFINE_flag(
    _PlaceFlag(
        "compare",
        "Show the answers of the run's teacher too; of another network with --compare=PLACE, where "
        "PLACE is what --model takes.",
    )
)
_PICTURE = flags.DEFINE_string(
    "picture", None, "PNG file to draw the images and the answers to, a row for each image."
)
_BATCH = 64  # images that are looked at together


def main(argv: Sequence[str]) -> None:
    """Print the most probable classes of each image."""
    model = _MODEL.value
    if not model:
        raise UserError(
            "--model is missing: expected the workdir of a run, a directory with model.json, or "
            "an exported file"
        )
    places = list(argv[1:])
    if not places:
        raise UserError("no image is named: expected images, or folders of them, as arguments")
    files = loose_images.find(places)
    unread = _Unread(len(files))
    for file in files:  # told before the networks are opened, which may be wrong too
        if file.problem:
            unread.add(file)
    problems = _problems(model, files)
    for problem in problems:
        errors.tell(problem)
    if unread.count == len(files) and _JSON.value:
        for file in files:
            _JsonLines(model).problem(file)
    if not problems and unread.count < len(files):
        picture = errors.reachable(_PICTURE.value, "--picture") if _PICTURE.value else None
        _classify(model, files, picture, unread)
    unread.tell_count()
    if problems or unread.count:
        sys.exit(errors.EXIT_USER_ERROR)


def _problems(model: str, files: Sequence[loose_images.LooseImage]) -> list[str]:
    """Return what is wrong with the options, as far as can be told before a network is opened."""
    places = {"--model": model}
    if (teacher := _teacher()) not in (None, opening.OWN):
        places["--compare"] = str(teacher)
    checks: list[Callable[[], None]] = [
        functools.partial(opening.check, place, option) for option, place in places.items()
    ]
    if _PICTURE.value:
        read = [*(file.path for file in files), *map(Path, places.values())]
        checks.append(functools.partial(_check_picture, _PICTURE.value, read))
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return problems


def _check_picture(place: str, read: Sequence[Path]) -> None:
    """Raise `UserError` unless the picture can be written, and is none of the files to read."""
    path = errors.reachable(place, "--picture")
    if path.suffix.lower() != ".png":
        raise UserError(f"--picture={place}: expected a file that ends in .png")
    if path.is_dir():
        raise UserError(f"--picture={place} is a directory: expected a file to write")
    atomic_files.check_place(path.absolute().parent, f"--picture={place}")
    atomic_files.check_not_read(path, read, f"--picture={place}")


def _teacher() -> str | None:
    """Return what `--compare` names: `own`, a place, or nothing."""
    value = _COMPARE.value
    if value is None or value.lower() in _NO_TEACHER:
        return None
    return opening.OWN if value.lower() in _OWN_TEACHER else value


def _classify(
    model: str,
    files: Sequence[loose_images.LooseImage],
    picture: Path | None,
    unread: _Unread,
) -> None:
    """Print the answer to each image, and tell of those that cannot be read."""
    networks = opening.classifiers(model, _CHECKPOINT.value, _teacher(), processor.cores())
    for who, network in networks.items():
        logger.info(
            "%s: %s of %d classes, images of %d x %d pixels; %s",
            *(who if len(networks) > 1 else model, network.name, network.num_classes),
            *(*network.size, network.origin),
        )
    page = _JsonLines(model) if _JSON.value else _Table(files, networks)
    agreement = _Agreement(networks)
    drawing = _Drawing(picture) if picture else None
    sizes = [network.size for network in networks.values()]
    for first in range(0, len(files), _BATCH):
        known = files[first : first + _BATCH]
        batch, images = loose_images.read(known, sizes)
        probabilities = {
            who: network.probabilities(pixels)
            for (who, network), pixels in zip(networks.items(), images, strict=True)
            if len(pixels)
        }
        rows = iter(range(len(images[0])))
        for file, before in zip(batch, known, strict=True):
            if file.problem:
                page.problem(file)
                if not before.problem:
                    unread.add(file)
                continue
            row = next(rows)
            answers = {
                who: networks[who].top(of[row], _TOP.value) for who, of in probabilities.items()
            }
            page.answer(file, answers)
            agreement.add(answers)
            if drawing:
                drawing.add(file, answers)
    agreement.tell()
    if drawing:
        drawing.write()


class _Unread:
    """Tells of images that cannot be read: of the first ten each, and of all how many."""

    _MOST = 10

    def __init__(self, of: int):
        self.count, self._of = 0, of

    def add(self, file: loose_images.LooseImage) -> None:
        self.count += 1
        if self.count <= self._MOST:
            errors.tell(file.problem)

    def tell_count(self) -> None:
        if self.count > self._MOST:
            errors.tell(
                f"{self.count:,} of {self._of:,} images cannot be read: the first {self._MOST} are "
                f"named above{'' if _JSON.value else ', and --json names each'}"
            )


class _Agreement:
    """Counts for how many images student and teacher choose the same class."""

    def __init__(self, networks: Mapping[str, Classifier]):
        self._networks, self._count, self._same = list(networks.values()), 0, 0

    def add(self, answers: Mapping[str, Sequence[Choice]]) -> None:
        self._count += 1
        self._same += is_same(self._networks, [choices[0] for choices in answers.values()])

    def tell(self) -> None:
        if len(self._networks) > 1 and self._count:
            logger.info(
                "student and teacher choose the same class for %d of %d", self._same, self._count
            )


class _Drawing:
    """Collects what is drawn, and writes the picture at the end."""

    def __init__(self, path: Path):
        self._path, self._rows, self._left_out = path, list[Any](), 0

    def add(self, file: loose_images.LooseImage, answers: Mapping[str, Sequence[Choice]]) -> None:
        from kd_jax.inference import picture

        if len(self._rows) == picture.MOST:
            self._left_out += 1
            return
        image, _ = image_files.decode(file.path)
        self._rows.append(
            picture.Row(folder_tree.shown(file.path.name), picture.thumbnail(image), answers)
        )

    def write(self) -> None:
        from kd_jax.inference import picture

        if not self._rows:
            logger.warning("no image could be read: %s is not written", self._path)
            return
        atomic_files.write_whole(self._path, picture.draw(self._rows))
        if self._left_out:
            logger.warning(
                "%s has the first %d images, and not the other %d",
                *(self._path, picture.MOST, self._left_out),
            )


class _JsonLines:
    """Prints an object for each image."""

    _FIELDS = {opening.STUDENT: "top", opening.TEACHER: "teacher_top"}

    def __init__(self, model: str):
        self._model = model

    def answer(
        self, file: loose_images.LooseImage, answers: Mapping[str, Sequence[Choice]]
    ) -> None:
        record: dict[str, Any] = {
            "image": str(file.path), "model": self._model, "checkpoint": _CHECKPOINT.value,
        }  # fmt: skip
        for who, choices in answers.items():
            record[self._FIELDS[who]] = [
                {"label": c.label, "name": c.name, "probability": round(c.probability, 6)}
                for c in choices
            ]
        print(json.dumps(record), flush=True)

    def problem(self, file: loose_images.LooseImage) -> None:
        print(json.dumps({"image": str(file.path), "error": file.problem}), flush=True)


class _Table:
    """Prints a table, a row for each choice of each image, while images are looked at."""

    def __init__(
        self, files: Sequence[loose_images.LooseImage], networks: Mapping[str, Classifier]
    ):
        width = text_tables.width
        names = {name for network in networks.values() for name in network.shown_names}
        self._name_width = max(width("student"), *(width(folder_tree.shown(n)) for n in names))
        self._path_width = max(width("image"), *(width(file.name) for file in files))
        self._has_head = False

    def answer(
        self, file: loose_images.LooseImage, answers: Mapping[str, Sequence[Choice]]
    ) -> None:
        widths = [self._path_width, *([self._name_width, len("100.00")] * len(answers))]
        is_name = [True, *([True, False] * len(answers))]
        if not self._has_head:
            titles = list(answers) if len(answers) > 1 else ["class"]
            head = ["image", *(cell for title in titles for cell in (title, "%"))]
            print(text_tables.top(head, widths, is_name))
            self._has_head = True
        for rank in range(max(map(len, answers.values()))):
            cells = []
            for choices in answers.values():
                if rank < len(choices):
                    shown, chance = folder_tree.shown(choices[rank].name), choices[rank].probability
                    cells += [shown, f"{100 * chance:.2f}"]
                else:  # a network of fewer classes
                    cells += ["", ""]
            print(text_tables.line([file.name if rank == 0 else "", *cells], widths, is_name))
        sys.stdout.flush()

    def problem(self, file: loose_images.LooseImage) -> None:
        """Print nothing: a table has the answers alone."""


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main, takes_words=True)
