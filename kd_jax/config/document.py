"""The fields of the config as a document, docs/config.md: a table for each group."""

from __future__ import annotations

from ml_collections import ConfigDict

from kd_jax.config import schema
from kd_jax.config.entry import Field, Range
from kd_jax.config.fields import FIELDS, GROUPS

_HEAD = """\
# Fields of the config

Made by `python -m kd_jax.config > docs/config.md` from `kd_jax/config/fields.py`.

Any field can be set in a file in `configs/`, or behind it as `--config.FIELD=VALUE`. The defaults \
are the recipe `funmatch` ([recipes.md](recipes.md)).

**May differ**: at a *resume*, a run may go on under another value, because the field does not \
touch the training; in a *cohort*, runs that train together may have different values."""
_TITLES = ("field", "default", "values", "unit", "may differ", "meaning")
_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", tuple: "tuple"}
_POWERS = {2**20: "2^20", 2**31 - 1: "2^31 - 1"}


def markdown(config: ConfigDict | None = None) -> str:
    """Return the document.

    Args:
      config: an experiment, whose values get a column of their own.
    """
    parts = [_HEAD if config is None else "# Fields of the config, and their values here"]
    titles = _TITLES if config is None else (*_TITLES[:2], "here", *_TITLES[2:])
    for group, title in GROUPS.items():
        rows = [_row(field, config) for field in FIELDS if field.group == group]
        table = (titles, ["---"] * len(titles), *rows)
        parts.append(f"## {title}" + (f": `{group}`" if group else ""))
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in table))
    return "\n\n".join(parts) + "\n"


def _row(field: Field, config: ConfigDict | None) -> list[str]:
    here = [] if config is None else [f"`{schema.get_field(config, field.path)!r}`"]
    scopes = {"resume": field.resume_mutable, "cohort": field.cohort_mutable}
    return [
        f"`{field.path}`",
        f"`{field.default!r}`",
        *here,
        _values(field),
        field.unit or "-",
        ", ".join(scope for scope, may_differ in scopes.items() if may_differ) or "-",
        field.help + (f" Source: {field.source}." if field.source else ""),
    ]


def _values(field: Field) -> str:
    """Return the values that a field may have, in words."""
    if field.choices:
        return ", ".join(f"`{choice}`" for choice in field.choices)
    words = field.form or _TYPES[field.kind]
    if field.range:
        words += f" in {_interval(field.range)}"
    return words + (", or None" if field.none_or else "")


def _interval(interval: Range) -> str:
    """Return an interval as `Range` writes it, but with all digits of large whole numbers."""
    low, high = (_POWERS.get(int(end), f"{end:g}") for end in (interval.low, interval.high))
    left, right = "[" if interval.has_low else "(", "]" if interval.has_high else ")"
    return f"{left}{low}, {high}{right}"
