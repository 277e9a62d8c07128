"""What `data=` of `kd_jax.distill` may be: a name, a folder, or arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_jax.config import schema
from kd_jax.data import arrays, catalog, folder_tree
from kd_jax.data.splits import Source, Split, hold_out_test
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, local

_SHARE = 10  # a tenth is held out for the test split, and for validation


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set as a config and the objects beside it say it.

    Attributes:
      fields: of the config, by path.
      source: arrays; None for a set that the config names.
      validation: arrays; None: held out of train.
      defaults: of the config, by path, for fields that it leaves at those of every data set.
    """

    fields: dict[str, Any]
    source: Source | None = None
    validation: Split | None = None
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


def resolve(
    data: Any,
    val: Any,
    test: Any,
    unlabelled: Any,
    num_classes: int | None,
    classes_of_teacher: Callable[[tuple[int, int, int]], int | None],
) -> Data:
    """Return the data set that a caller named or gave.

    Args:
      data: None for what the config says; a name of tfds, `digits`, the path of a folder of
        images, or arrays: `images` or `(images, labels)`.
      val, test, unlabelled: arrays, only with `data` as arrays; None: a tenth of `data` is held out
        as test, and a tenth of the rest as validation.
      num_classes: None: the largest label tells, or the teacher where there are no labels.
      classes_of_teacher: the number of its outputs for images of a shape; None if nobody knows.

    Raises:
      UserError: they are none of that, or do not fit together.
    """
    if data is None or isinstance(data, str | Path):
        others = {"val": val, "test": test, "unlabelled": unlabelled}
        if given := [name for name, value in others.items() if value is not None]:
            raise UserError(
                f"{given[0]}= goes with data= as arrays, but data is {str(data)!r}: a named set "
                "has splits of its own"
            )
        if data is None:
            return Data({})
        if _is_place(data):
            fields: dict[str, Any] = {"dataset.name": catalog.FOLDER, "dataset.data_dir": str(data)}
        else:
            fields = {"dataset.name": str(data)}  # `folder` too: a config says where it is
        count = catalog.facts(fields["dataset.name"]).val_examples
        return Data(fields, defaults={"dataset.val_examples": count} if count else {})
    train = arrays.split(data, "data")
    shape = train.images.shape[1:]
    parts = {
        name: None if value is None else arrays.split(value, name, shape)
        for name, value in (("val", val), ("test", test), ("unlabelled", unlabelled))
    }
    labelled = [split for split in (train, parts["val"], parts["test"]) if split is not None]
    if num_classes is None:
        num_classes = 1 + int(max(split.labels.max() for split in labelled))
        if num_classes == 0:
            num_classes = classes_of_teacher(shape) or 0
        if num_classes < 2:
            raise UserError(
                f"data has {num_classes} classes, expected two or more: without labels the teacher "
                "says how many there are, or class_names="
            )
    if len(train) < 3:
        raise UserError(f"data has {len(train)} images: expected at least 3")
    held_out: dict[str, Any] = {}
    for name in ("test", "val"):  # out of `data`, and never out of the images without labels
        held_out[name] = parts[name]
        if parts[name] is None:
            whole = hold_out_test(train, num_classes, max(1, len(train) // _SHARE))
            train, held_out[name] = whole.train, whole.test
            logger.info("no %s= was given: %d images of data are held out", name, len(whole.test))
    source = arrays.source(
        train, held_out["test"], held_out["val"], parts["unlabelled"], num_classes
    )
    # What a config says of its own data set does not apply to arrays.
    fields = {path: schema.BY_PATH[path].default for path in schema.BY_PATH
              if path.startswith("dataset.")}  # fmt: skip
    return Data({**fields, "dataset.name": arrays.NAME}, source, held_out["val"])


def _is_place(data: str | Path) -> bool:
    """Tell whether a folder is meant, and no name of a set, which may have a slash too.

    A folder that is not there is told by what reads it.
    """
    place = local(data, "data")
    return bool(
        folder_tree.is_directory(place)
        or (place.suffix and folder_tree.is_there(place))  # an archive, which is told as such
        or isinstance(data, Path)
        or data.startswith((".", "~", "/"))
        or (len(place.parts) > 1 and folder_tree.is_directory(place.parent))
    )
