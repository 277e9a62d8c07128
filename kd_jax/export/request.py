"""What is asked of the command: checked before anything is read, and carried out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_jax.export import formats
from kd_jax.export.formats import Format
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, reachable


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, as they were given.

    Attributes:
      workdir: of a run, or a directory made by `import_teacher`.
      format: a name in `formats.FORMATS`, or `all`.
      out: file to write, or directory for all formats.
      checkpoint: `last`, `best`, or None for the network that a run or an import left.
      images: how many test images to verify on; None for all.
      outputs: `logits` or `probabilities`.
      data_dir: where the data set is; None for the place that the config names.
    """

    workdir: str | Path | None
    format: str | None
    out: str | Path | None
    checkpoint: str | None = None
    images: int | None = None
    outputs: str = "logits"
    data_dir: str | None = None


def check(request: Request) -> tuple[Format, ...]:
    """Return the formats to write, after what can be checked without JAX.

    Raises:
      UserError: an option is missing or wrong, or a package is not installed.
    """
    _path(request.workdir, "--workdir", "the workdir of a run, or of a network to export")
    out = _path(request.out, "--out", "the file to write")
    entries = formats.named(request.format)
    for option, value, allowed in (
        ("checkpoint", request.checkpoint, (None, "last", "best")),
        ("outputs", request.outputs, ("logits", "probabilities")),
    ):
        if value not in allowed:
            names = " or ".join(name for name in allowed if name)
            raise UserError(f"--{option}={value}: expected {names}")
    if request.images is not None and request.images < 1:
        raise UserError(
            f"--images={request.images}: expected 1 or more, because no file is left that was not "
            "verified"
        )
    if request.format == formats.ARRAYS and request.outputs != "logits":
        raise UserError(
            f"--outputs={request.outputs}: a file of weights has no outputs, so leave it out, or "
            "take another --format"
        )
    if request.format == formats.ALL and out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: expected a directory for --format=all")
    if request.format != formats.ALL and out.is_dir():
        raise UserError(f"--out={out} is a directory: expected a file to write")
    formats.check_installed(entries)
    return entries


def _path(place: str | Path | None, option: str, expected: str) -> Path:
    if not place:
        raise UserError(f"{option} is missing: expected {expected}")
    return reachable(place, option)


def _check_not_read(path: Path, places: Sequence[Path]) -> None:
    """Raise `UserError` if a file to write is of what is read: the network, its run, its data.

    Args:
      path: of the file. An export of before may be replaced: it has a card beside it.
      places: directories.
    """
    if not path.exists() or path.with_name(f"{path.name}{formats.CARD_ENDING}").exists():
        return
    for place in places:
        if path.resolve().is_relative_to(place.resolve()):
            raise UserError(
                f"--out={path} would take the place of a file in {place}, which is read: name "
                "another file"
            )


def carry_out(request: Request) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the files that are asked for; return their cards, and what is wrong with the others.

    Of one format, what is wrong is raised; of all formats, the others are written all the same.

    Raises:
      UserError: the request, the network or its data are wrong; or the one file that is asked for
        cannot be written, or does not answer as its network does.
    """
    entries = check(request)
    from kd_jax.export import exporter, function, source, verification

    assert request.workdir is not None
    assert request.out is not None
    workdir, out = reachable(request.workdir, "--workdir"), reachable(request.out, "--out")
    source.check(workdir, request.checkpoint)
    atomic_files.check_place(out.absolute().parent, f"--out={out}")
    places = (workdir, *source.data_places(workdir, request.data_dir))
    if request.format != formats.ALL:
        _check_not_read(out, places)
    network = source.read(workdir, request.checkpoint, request.data_dir)
    paths = {entry.name: out / f"{network.card.arch}{entry.suffix}" for entry in entries}
    if request.format == formats.ALL:
        for path in paths.values():
            _check_not_read(path, places)
    cards: list[dict[str, Any]] = []
    problems: list[str] = []
    with function.on_cpu():
        expected = verification.reference(network, request.images)
        if request.format != formats.ALL:
            return [exporter.export(network, entries[0], request.outputs, expected, out)], []
        out.mkdir(exist_ok=True)
        for entry in entries:
            path = paths[entry.name]
            try:
                cards.append(exporter.export(network, entry, request.outputs, expected, path))
            except UserError as error:
                problems.append(str(error))
    return cards, problems
