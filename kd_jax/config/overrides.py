"""The flag `--config=FILE[:ARGUMENT]` and the overrides `--config.FIELD=VALUE` that follow it.

ml_collections reads and applies them. `check` looks at the overrides first, because the library's
own errors name its code and not the user's input, and because it accepts some wrong values.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kd_jax.config import config_file, schema
from kd_jax.runtime.errors import UserError

_EXAMPLE = "configs/resnet44.py"
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=?)(.*)", re.DOTALL)
_CONFIG = re.compile(r"--?config(=|$)")
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}
_PARSERS: dict[type, flags.ArgumentParser[Any]] = {
    int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()
}  # fmt: skip
_LARGEST = 2**63  # beyond it nothing that computes takes an integer
_LONGEST = 80


class _Parser(flags.ArgumentParser[Any]):
    """Parser of the flag `--config`, in absl's form."""

    def parse(self, argument: str) -> Any:
        """Return the locked config of `FILE` or `FILE:ARGUMENT`."""
        return load(argument)


def define(
    values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> flags.FlagHolder[Any]:
    """Define the flag `--config` of a command; call `check` before absl parses the arguments.

    Args:
      values: the flags to define it among.
      argv: program name and arguments; `sys.argv` by default.
    """
    holder: flags.FlagHolder[Any] = config_flags.DEFINE_config_file(
        "config",
        None,
        f"Experiment, e.g. {_EXAMPLE}, or kd_jax:resnet44 for the package's own; "
        "`python -m kd_jax.config` lists its fields.",
        values,
        sys_argv=argv,
    )
    values["config"].parser = _Parser()
    return holder


def load(text: str) -> ConfigDict:
    """Return the locked config of `FILE`, `FILE:ARGUMENT` or `kd_jax:NAME`.

    Raises:
      UserError: there is no such file, or it fails.
    """
    if not text:
        raise UserError(f"--config is empty: expected a file such as {_EXAMPLE}")
    config = config_file.call(text, "get_config", _EXAMPLE)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {config_file.split(text)[0]} returns a {type(config).__name__}: "
            "expected kd_jax.config.default_config(), changed"
        )
    return config.lock()


def check(arguments: Sequence[str]) -> None:
    """Raise one `UserError` that lists every wrong override.

    Args:
      arguments: those of the command, without its name.
    """
    problems: list[str] = []
    has_config = False
    for number, argument in enumerate(arguments):
        has_config = has_config or _CONFIG.match(argument) is not None
        if not (match := _OVERRIDE.fullmatch(argument)):
            problems += _missing_prefix(argument)
            continue
        negated, path, equals, value = match.groups()
        if not has_config:
            problems.append(
                f"{_short(argument)} has no --config before it: expected one such as {_EXAMPLE}"
            )
        elif not equals and (negated or schema.TYPES.get(path) is bool):
            problems += _problems_of(path, "true", bool)
        elif not equals:
            following = arguments[number + 1 : number + 2]
            value = following[0] if following else "--"
            if value.startswith("--"):
                problems.append(f"config.{path} has no value: expected --config.{path}=VALUE")
            else:
                problems += _problems_of(path, value)
        else:
            problems += _problems_of(path, value)
    if problems:
        raise UserError("; ".join(problems))


def _missing_prefix(argument: str) -> list[str]:
    """Return a sentence where a flag is not known, and a field of the config has its name."""
    match = re.match(r"--?([\w.]+)", argument)
    name = match[1] if match else ""
    names = {name, name.removeprefix("no")}
    if not name or any(each in flags.FLAGS for each in names):
        return []
    paths = [path for path in schema.BY_PATH if names & {path, path.rpartition(".")[2]}]
    written = " or ".join(f"--config.{path}" for path in paths)
    return [f"{_short(argument)} is no flag: a field of the config is {written}"] if paths else []


def _problems_of(path: str, text: str, only: type | None = None) -> list[str]:
    """Return what is wrong with one override, as a sentence or none.

    Args:
      path: of the field.
      text: of the value.
      only: the type of field that this form of override is for: bool for `--config.FIELD` and
        `--noconfig.FIELD`; None for all.
    """
    kind = schema.TYPES.get(path)
    if kind is None:
        return [_unknown(path)]
    if only is not None and kind is not only:
        return [f"config.{path} is not true or false: expected --config.{path}=VALUE"]
    if kind is tuple:
        return [] if _is_tuple(text) else [
            f"config.{path} is {_short(text)!r}, expected values in brackets such as "
            f"--config.{path}='(1, 2)', or the flag once for each"
        ]  # fmt: skip
    if kind in _PARSERS:
        try:
            number: Any = _PARSERS[kind].parse(text)
        except (TypeError, ValueError):
            return [f"config.{path} is {_short(text)!r}, expected {_EXPECTED[kind]}"]
        if kind is int and abs(number) >= _LARGEST:
            return [f"config.{path} is {_short(text)!r}, expected a whole number below 2**63"]
    return []


def _unknown(path: str) -> str:
    """Return the sentence for a path that is no field: the group's fields, or the nearest name."""
    known = sorted(schema.TYPES)
    inside = [f"config.{name}" for name in known if name.startswith(f"{path}.")]
    if inside and path:
        return f"config.{path} is a group of fields, expected one of {', '.join(inside)}"
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    last = path.rpartition(".")[2]
    near = near or [name for name in known if last and name.rpartition(".")[2] == last][:1]
    advice = (
        f", did you mean config.{near[0]}?" if near else ": `python -m kd_jax.config` has them all"
    )
    return f"config.{_short(path)} is no field{advice}"


def _is_tuple(text: str) -> bool:
    """Tell whether ml_collections makes a tuple of a text: a literal, or a word without quotes."""
    try:
        value = ast.literal_eval(text)
    except ValueError:
        return True
    except SyntaxError:
        return not re.search(r"[,\s]", text)
    except (TypeError, MemoryError, RecursionError):
        return False
    parts = value if isinstance(value, tuple | list) else (value,)
    return all(
        _is_plain(part) or (isinstance(part, tuple) and all(map(_is_plain, part))) for part in parts
    )


def _is_plain(part: Any) -> bool:
    """Tell whether a part of a tuple is a text or a number that absl takes."""
    return isinstance(part, float | str) or (isinstance(part, int) and abs(part) < _LARGEST)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
