"""What the classes of a data set are called, for people to read."""

from __future__ import annotations

from typing import Any

from kd_jax.data import catalog, image_folder, tfds_source
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError


def of(options: Any) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of their labels; None where nobody knows them.

    Args:
      options: `config.dataset`.
    """
    if options.name == catalog.FOLDER:
        return tuple(image_folder.class_names(options))
    return catalog.facts(tfds_source.base_name(options.name)).class_names or _as_tfds_wrote_them(
        options
    )


def known(options: Any, num_classes: int) -> tuple[str, ...] | None:
    """Return `of` the data set, if it has a name of its own for each of so many classes."""
    names = of(options)
    if names and not len(names) == len(set(names)) == num_classes:
        logger.warning(
            "the names of the classes of %s are left out: %d names, %d of them different, for %d "
            "classes",
            options.name,
            len(names),
            len(set(names)),
            num_classes,
        )
        return None
    return names or None


def _as_tfds_wrote_them(options: Any) -> tuple[str, ...] | None:
    """Return the names that lie beside the version of a set that is read; None without any."""
    try:
        text = (tfds_source.directory(options) / "label.labels.txt").read_text(encoding="utf-8")
    except (UserError, OSError, UnicodeError):  # tfds writes no file where the names are numbers
        return None
    # As tfds reads it: `str.splitlines` would also break at characters that a name may have.
    return tuple(name for line in text.split("\n") if (name := line.strip()))
