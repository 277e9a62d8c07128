"""Images that people name one by one, or by their folder: found, and read for a network.

What cannot be read is told of each and stops none of the others.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data import folder_tree, image_files
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable


class LooseImage(NamedTuple):
    """A file to read.

    Attributes:
      path: of the file, or of what was to be one.
      problem: why it cannot be read, in a sentence; empty where nothing is known against it.
    """

    path: Path
    problem: str = ""

    @property
    def name(self) -> str:
        """The path as it can stand in a line of text."""
        return folder_tree.shown(str(self.path))


def find(places: Iterable[str]) -> list[LooseImage]:
    """Return the files that places lead to, in the order of the places.

    Args:
      places: a file is taken whatever its name is. Below a directory those are taken whose ending
        is an image's, as from a data set in a folder; what is passed over is logged.
    """
    files: list[LooseImage] = []
    for place in places:
        try:
            files += _at(reachable(place, "an image"))
        except UserError as error:
            files.append(LooseImage(Path(place), str(error)))
    return files


def _at(path: Path) -> list[LooseImage]:
    """Return the images at a path.

    Raises:
      UserError: there are none.
    """
    shown = folder_tree.shown(str(path))
    if not path.exists():
        raise UserError(f"there is no {shown}: expected an image, or a folder of images")
    if not path.is_dir():
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{shown} is neither a file nor a directory: expected an image")
        return [LooseImage(path)]
    images, skipped = folder_tree.images(path)
    if not images:
        holds = f" (it holds {folder_tree.in_words(skipped)})" if skipped else ""
        raise UserError(f"{shown} has no image{holds}: expected files that Pillow reads")
    if skipped:
        logger.warning("passed over in %s: %s", shown, folder_tree.in_words(skipped))
    return [LooseImage(image) for image, _ in images]


def read(
    files: Sequence[LooseImage], sizes: Sequence[tuple[int, int]]
) -> tuple[list[LooseImage], list[np.ndarray]]:
    """Read files, as many as can be read.

    Args:
      files: of any sizes and kinds.
      sizes: height and width to bring them to, of each network; see `image_files.fit`.

    Returns:
      the files, each with its problem where there is one; and for each size the images of those
      without, uint8 `[n, H, W, 3]`.
    """
    checked, images = [], [[np.empty((0, *size, 3), np.uint8)] for size in sizes]
    for file in files:
        if not file.problem:
            try:
                image, _ = image_files.decode(file.path)
                for fitted, size in zip(images, sizes, strict=True):
                    fitted.append(image_files.fit(image, size)[None])
            except Exception as error:  # Pillow raises many kinds
                file = file._replace(problem=str(image_files.unreadable(file.path, error)))
        checked.append(file)
    return checked, [np.concatenate(each) for each in images]
