"""Fields of the config as keyword arguments."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kd_jax.config import schema
from kd_jax.runtime.errors import UserError

_SHORT = {"epochs": "total_epochs", "steps": "total_steps"}


def path_of(keyword: str) -> str:
    """Return the path of the field that a keyword names.

    Args:
      keyword: a path with `__` for each dot (`distill__temperature`), its last name where only one
        field has it (`temperature`), `epochs` or `steps`.

    Raises:
      UserError: there is no such field, or several.
    """
    path = _SHORT.get(keyword, keyword.replace("__", "."))
    if path in schema.BY_PATH:
        return path
    paths = [each for each in schema.BY_PATH if each.rpartition(".")[2] == path]
    if len(paths) == 1:
        return paths[0]
    if paths:
        names = " or ".join(each.replace(".", "__") for each in paths)
        raise UserError(f"{keyword}= is the name of several fields: write {names}")
    known = [each.replace(".", "__") for each in schema.BY_PATH]
    nearest = difflib.get_close_matches(keyword, [*known, *_SHORT], n=1, cutoff=0.5)
    last = difflib.get_close_matches(keyword, [each.rpartition("__")[2] for each in known], n=1)
    if last:
        nearest = [next(each for each in known if each.rpartition("__")[2] == last[0])]
    advice = (
        f", did you mean {nearest[0]}?" if nearest else ": `python -m kd_jax.config` has them all"
    )
    raise UserError(f"{keyword}= is no field of the config{advice}")


def apply(config: ConfigDict, options: Mapping[str, Any]) -> None:
    """Set fields of a config by keyword.

    Args:
      config: is changed.
      options: keywords, see `path_of`, to values; a list counts as a tuple.

    Raises:
      UserError: there is no such field, or the value is of another type.
    """
    paths = {path_of(keyword): keyword for keyword in options}
    lengths = [paths[path] for path in ("total_epochs", "total_steps") if path in paths]
    if len(lengths) == 2:
        raise UserError(f"{lengths[0]}= and {lengths[1]}= are both given: expected one of them")
    if "total_epochs" in paths:
        set_field(config, "total_steps", None)  # or it would be what counts
    for path, keyword in paths.items():
        set_field(config, path, options[keyword], keyword)


def set_field(config: ConfigDict, path: str, value: Any, keyword: str | None = None) -> None:
    """Set one field.

    Raises:
      UserError: the value is of another type.
    """
    kind = schema.TYPES[path]
    value = tuple(value) if isinstance(value, list) else value
    if kind is float and type(value) is int:
        value = float(value)
    if not (type(value) is kind or (value is None and path in schema.MAY_BE_NONE)):
        raise UserError(
            f"{keyword or path}= is {value!r}, expected a {kind.__name__} for config.{path}"
        )
    group, _, name = path.rpartition(".")
    with config.unlocked():
        (config[group] if group else config)[name] = value
