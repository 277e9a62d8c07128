"""The config and its rules, made of the schema's entries; a field is declared in `fields.py`.

A file in `configs/` starts from `default_config` and changes what its experiment is about. The
config is locked, so a misspelt override fails and names the nearest field; `checks.check` looks at
the values before any data is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from kd_jax.config.entry import Field
from kd_jax.config.fields import FIELDS, GROUPS, LABEL_LOSSES

BY_PATH: dict[str, Field] = {field.path: field for field in FIELDS}
# The type of every field's values; a field of MAY_BE_NONE may be None as well.
TYPES: dict[str, type] = {field.path: field.kind for field in FIELDS}
MAY_BE_NONE: dict[str, type] = {field.path: field.kind for field in FIELDS if field.none_or}
# Fields that a run may be resumed under another value of; but see `differences`, and for the number
# of devices where batch norm is not synchronised `provenance.check_devices`.
RESUME_MUTABLE = tuple(field.path for field in FIELDS if field.resume_mutable)
# Fields that the members of a cohort may differ in (`training/cohort.py`).
COHORT_MUTABLE = tuple(field.path for field in FIELDS if field.cohort_mutable)


def default_config() -> ConfigDict:
    """Return the default experiment; every field a config or an override can set is here."""
    config = ConfigDict()
    for field in FIELDS:
        group = config
        if field.group:
            if field.group not in config:
                config[field.group] = ConfigDict()
            group = config[field.group]
        name = field.path.rpartition(".")[2]
        group[name] = placeholder(field.none_or) if field.none_or else field.default
    return config


class _Operation(NamedTuple):
    """What a `FieldReference` computes its value by: `fn(value, *args)`."""

    fn: Callable[..., Any]
    args: list[Any]


def follow(config: ConfigDict, path: str, leader: str, function: Callable[[Any], Any]) -> None:
    """Make a field a function of another one, until it is given a value of its own.

    A config file returns before `--config.FIELD=VALUE` is applied. So it cannot read what another
    field will be, and leaves open what depends on it.

    Args:
      config: changed in place.
      path: dotted, of the field.
      leader: dotted, of the field that it depends on.
      function: gives the value of the field from that of the leader.
    """
    (group, name), (above, leading) = (_place(config, each) for each in (path, leader))
    kind = BY_PATH[path].kind
    operation = _Operation(lambda _, value: function(value), [above.get_ref(leading)])
    group[name] = FieldReference(kind(), field_type=kind, op=operation)


def _place(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """Return the group that a field is in, and the field's name there."""
    group, _, name = path.rpartition(".")
    return (config[group] if group else config), name


def choices(path: str) -> tuple[str, ...]:
    """Return the values that a field of text may have, such as those of `distill.loss`."""
    return BY_PATH[path].choices


def in_groups(paths: Collection[str]) -> list[str]:
    """Return paths in few words: `optimizer.*` where all fields of a group are among them."""
    words = [path for path in paths if "." not in path]
    for group in filter(None, GROUPS):
        members = [field.path for field in FIELDS if field.group == group]
        absent = [path for path in members if path not in paths]
        if len(absent) < len(members):
            words.append(f"{group}.*" + (f" but {', '.join(absent)}" if absent else ""))
    return words


def reads_labels(config: ConfigDict) -> bool:
    """Tell whether a run's training reads labels: for cross-entropy, or for its loss."""
    return config.distill.label_weight > 0 or config.distill.loss in LABEL_LOSSES


def get_field(config: ConfigDict, path: str) -> Any:
    """Return the value at a dotted path such as `mixup.kind`."""
    value: Any = config
    for name in path.split("."):
        value = value[name]
    return value


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Return the config as dotted paths to values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Return the config as JSON text, fields in alphabetical order."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Return the config of a run, from its `config.json`."""
    config = default_config()
    fields = json.loads(text, object_hook=_with_tuples)
    config.update(ConfigDict(fields))
    return config.lock()


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Make tuples of lists, which is what JSON makes of tuples."""
    return {name: _as_tuple(value) for name, value in fields.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


# Fields that nothing reads unless another one, their leader, says something.
FOLLOWERS = {
    "teacher.record": ("teacher.record_dtype", "teacher.record_top", "teacher.record_limit_gb"),
    "distill.features": ("distill.feature_loss", "distill.feature_weight"),
}


def unread(config: ConfigDict) -> dict[str, Any]:
    """Return the defaults of fields that nothing reads in this config, by path."""
    return {
        path: BY_PATH[path].default
        for leader, paths in FOLLOWERS.items()
        for path in paths
        if not get_field(config, leader)
    }


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Return `field: old -> new` for every field that differs and may not at a resume.

    A field that nothing reads in either may. With `patience`, `eval_every_epochs` may not: patience
    counts validations, so their distance is part of the training.
    """
    before, after = flatten(old), flatten(new)
    mutable = set(RESUME_MUTABLE) - ({"eval_every_epochs"} if old.patience else set())
    mutable |= unread(old).keys() & unread(new).keys()
    return [
        f"{path}: {before.get(path)!r} -> {after.get(path)!r}"
        for path in before | after
        if path not in mutable and before.get(path) != after.get(path)
    ]
