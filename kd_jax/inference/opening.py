"""Open what people name: the workdir of a run, a stored network, an exported file or their folder.

Imports no JAX before it is known that the network needs it.
"""

from __future__ import annotations

from pathlib import Path

from kd_jax.inference import files
from kd_jax.inference.classifier import Classifier, why_not_comparable
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable

KEPT = "kept"  # the network that a finished run kept, and not one of its checkpoints
OWN = "own"  # as a teacher: that of the run
STUDENT, TEACHER = "student", "teacher"
_DIRECTORY_FILES = ("model.json", "config.json")  # of a stored network, of a run


def classifiers(
    model: str | Path,
    checkpoint: str = KEPT,
    teacher: str | Path | None = None,
    threads: int = 1,
    option: str = "--compare",
) -> dict[str, Classifier]:
    """Return a network as `student`, and what it is compared with as `teacher`.

    Args:
      model: workdir of a run, directory of a stored network, exported file, or a folder of them.
      checkpoint: `kept`, `best` or `last`, of a run.
      teacher: another such place; `own`: the teacher of the run; None: none.
      threads: of one call of an exported file.
      option: that names the teacher, for messages.

    Raises:
      UserError: it is not there, damaged, or cannot be run here.
    """
    path, is_network = _place(model, "--model")
    if is_network:
        from kd_jax.inference import networks

        stored = networks.find(
            path, checkpoint, with_teachers=teacher == OWN, teacher_option=option
        )
        opened = {STUDENT: networks.student(stored)}
        if teacher == OWN:
            opened[TEACHER] = networks.teacher(stored)
    else:
        if checkpoint != KEPT:
            raise UserError(
                f"--checkpoint={checkpoint}, but {model} is no run: leave --checkpoint out"
            )
        if teacher == OWN:
            raise UserError(
                f"{model} is no run, so its teacher is not known: name it, {option}=PLACE (a "
                "run, a stored network or an exported file)"
            )
        opened = {STUDENT: _exported(path, threads)}
    if teacher is not None and teacher != OWN:
        place, is_network = _place(teacher, option)
        if is_network:
            from kd_jax.inference import networks

            opened[TEACHER] = networks.student(networks.find(place, option=option))
        else:
            opened[TEACHER] = _exported(place, threads)
    if reason := why_not_comparable(list(opened.values())):
        logger.warning(
            "that student and teacher choose the same class says nothing here: %s", reason
        )
    for network in opened.values():
        if network.class_names is None:
            logger.warning("the classes of %s have no names: their numbers are shown", network.name)
    return opened


def check(place: str | Path, option: str) -> None:
    """Raise `UserError` unless a place is there, and may hold a network. Nothing of it is read."""
    _place(place, option)


def _place(place: str | Path, option: str) -> tuple[Path, bool]:
    """Return a path, and whether it is a directory with a network or a run.

    Raises:
      UserError: it is not there, or holds nothing that can be opened.
    """
    path = reachable(place, option)
    if path.is_file():
        if path.name in _DIRECTORY_FILES:
            raise UserError(
                f"{option}={place} is a file: expected the directory that it is in, or an "
                "exported file"
            )
        return path, False
    if not path.is_dir():
        raise UserError(
            f"{option}={place} is not there: expected the workdir of a run, a directory made by "
            "kd_jax.import_teacher, or an exported file"
        )
    is_network = any((path / name).exists() for name in _DIRECTORY_FILES)
    return path, is_network or not files.exported_in(path)


def _exported(path: Path, threads: int) -> Classifier:
    if path.is_dir():
        return files.open_folder(path, threads)
    return files.open_file(path, threads)
