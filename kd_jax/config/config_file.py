"""Load a Python file by its path, and call the function of a config file.

Everything that can be wrong with such a file is one sentence (`UserError`).
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_jax.runtime.errors import UserError, in_short

_COMMANDS = {"get_config": "kd_jax.main", "get_study": "kd_jax.study"}  # that call a function
_LONGEST = 300  # characters of another error that are shown


def call(text: str, function: str, example: str) -> Any:
    """Return what a function of `FILE` or `FILE:ARGUMENT` returns.

    Args:
      text: the value of `--config`.
      function: name of the function; it is given the argument, if there is one.
      example: path of a file that has this function, for the error sentences.

    Raises:
      UserError: there is no such file or function, it takes no argument or needs one, or it fails.
    """
    name, colon, argument = text.partition(":")
    module = load(Path(name), example)
    get = getattr(module, function, None)
    if not callable(get):
        commands = [
            f"; it is for {command}"
            for other, command in _COMMANDS.items()
            if other != function and hasattr(module, other)
        ]
        raise UserError(
            f"{name} has no {function}(): expected a file such as {example}{''.join(commands[:1])}"
        )
    arguments = [argument] if colon else []
    _check_arguments(text, get, arguments)
    try:
        return get(*arguments)
    except UserError:
        raise
    except ValueError as error:  # how a config file refuses an argument
        raise UserError(f"--config={text}: {in_short(error, _LONGEST)}") from None
    except (Exception, SystemExit) as error:  # a bug of the file, not of kd_jax
        raise UserError(
            f"{name} fails with {type(error).__name__}: {in_short(error, _LONGEST)}"
        ) from error


def load(path: Path, example: str) -> ModuleType:
    """Return the module of a Python file, which is executed.

    Args:
      path: of the file.
      example: path of another such file, for the error sentence.

    Raises:
      UserError: it is no Python file, or it fails.
    """
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # no file can have this name
        is_file = False
    if path.suffix != ".py" or not is_file:
        raise UserError(f"--config={path} is no Python file: expected one such as {example}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of a class there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a bug of the file, not of kd_jax
        sys.modules.pop(spec.name, None)
        raise UserError(
            f"{path} fails with {type(error).__name__}: {in_short(error, _LONGEST)}"
        ) from error
    return module


def _check_arguments(text: str, function: Callable[..., Any], arguments: list[str]) -> None:
    """Raise `UserError` unless a function may be called with these arguments."""
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
        return
    except TypeError:
        pass
    name, colon, _ = text.partition(":")
    required = [p.name for p in signature.parameters.values()
                if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]  # fmt: skip
    if colon and not required:
        raise UserError(f"--config={text}: {name} takes no argument, expected --config={name}")
    raise UserError(
        f"--config={text}: {name} needs {' and '.join(required)} as its argument, expected "
        f"--config={name}:{required[0].upper()}"
    )
