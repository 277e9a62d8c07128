"""Where the splits of a folder of images lie; what was given in their place is told what it is."""

from __future__ import annotations

import difflib
from pathlib import Path

from ml_collections import ConfigDict

from kd_jax.data import folder_tree
from kd_jax.runtime.errors import UserError, local

_MOST_NAMES = 10  # in a sentence
_CONTENT = "train/CLASS/*.png (or .jpg), and test/CLASS/*.png if there is a test split"


def root(config: ConfigDict) -> Path:
    """Return the directory that holds the splits.

    Args:
      config: `config.dataset`.

    Raises:
      UserError: none was given.
    """
    if not config.data_dir:
        raise UserError(
            "config.dataset.name is folder, and config.dataset.data_dir is not given: expected "
            f"--config.dataset.data_dir=DIR, a directory that holds {_CONTENT}"
        )
    return local(config.data_dir, "config.dataset.data_dir")


def train_directory(config: ConfigDict) -> Path:
    """Return the directory of the training split, which is there.

    Raises:
      UserError: it is not; the sentence says what is.
    """
    place = root(config)
    train = place / config.train_split
    if folder_tree.is_directory(train):
        return train
    raise UserError(
        f"there is no directory {folder_tree.shown(str(train))}: "
        f"{_what_is_there(place, train, config)}; expected config.dataset.data_dir to hold "
        f"{_CONTENT}"
    )


def check_classes(train: Path, classes: list[str]) -> None:
    """Raise `UserError` unless a training split has two classes."""
    if len(classes) >= 2:
        return
    if not classes:
        holds = folder_tree.in_words(folder_tree.others(train)) or "nothing"
        raise UserError(
            f"{train} holds no directory of a class ({holds}): expected at least two classes, "
            "each a directory with its images"
        )
    below = folder_tree.directories(train / classes[0])
    deeper = (
        f"; if its directories ({_listed(below)}) are the classes, give "
        f"--config.dataset.train_split={train.name}/{folder_tree.shown(classes[0])}"
        if len(below) > 1
        else ""
    )
    raise UserError(
        f"{train} has one class, {folder_tree.shown(classes[0])}: expected at least two classes, "
        f"each a directory with its images{deeper}"
    )


def _what_is_there(place: Path, train: Path, config: ConfigDict) -> str:
    """Say what lies where the training split was expected, and what that may be."""
    if not folder_tree.is_directory(place):
        return _what_is_in_place_of(place)
    names = folder_tree.directories(place)
    if not names:
        holds = folder_tree.in_words(folder_tree.others(place)) or "nothing"
        return f"it holds no directory ({holds})"
    if alike := _alike(config.train_split, names):
        shown = folder_tree.shown(alike)
        return (
            f"it holds {_listed(names)}: if {shown} is meant, give "
            f"--config.dataset.train_split={shown}"
        )
    if not any(folder_tree.holds_images(place / name) for name in names[:_MOST_NAMES]):
        return f"it holds {_listed(names)}"
    if place.absolute().name == config.train_split:
        return (
            f"{folder_tree.shown(str(place))} is that directory itself, with the classes "
            f"{_listed(names)}: give the one that it lies in, "
            f"--config.dataset.data_dir={folder_tree.shown(str(place.absolute().parent))}"
        )
    return (
        f"it holds {_listed(names)}, with images: if these are the classes, move them into "
        f"{folder_tree.shown(str(train))}"
    )


def _what_is_in_place_of(place: Path) -> str:
    """Say what there is where the whole folder was expected."""
    if folder_tree.is_there(place):
        return f"{folder_tree.shown(str(place))} is a file (an archive has to be unpacked)"
    parent = place.parent
    names = folder_tree.directories(parent) if folder_tree.is_directory(parent) else []
    alike = _alike(place.name, names)
    near = f", only {folder_tree.shown(str(parent / alike))}" if alike else ""
    return f"{folder_tree.shown(str(place))} itself is not there{near}"


def _alike(name: str, names: list[str]) -> str | None:
    """Return the name that most resembles another; None if none does."""
    plain = {each.casefold(): each for each in reversed(names)}
    if name.casefold() in plain:
        return plain[name.casefold()]
    begin = [each for each in names if each.casefold().startswith(name.casefold())]
    if begin:
        return begin[0]
    close = difflib.get_close_matches(name.casefold(), plain, n=1, cutoff=0.7)
    return plain[close[0]] if close else None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(folder_tree.shown, names[:_MOST_NAMES])) + more
