"""What the classes of a data set are called, for people to read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kd_jax.data import catalog, image_folder, tfds_source


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
    return names if names and len(names) == len(set(names)) == num_classes else None


def _as_tfds_wrote_them(options: Any) -> tuple[str, ...] | None:
    """Return the names that lie beside a prepared data set, if its versions agree on them."""
    root = options.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    files = (Path(root).expanduser() / tfds_source.base_name(options.name)).rglob(
        "label.labels.txt"
    )
    try:
        texts = {path.read_text(encoding="utf-8") for path in files}
    except (OSError, UnicodeError):  # whoever wrote them
        return None
    return tuple(texts.pop().splitlines()) if len(texts) == 1 else None
