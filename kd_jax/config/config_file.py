"""Call the function of a file in `configs/`: what is wrong with it is said in one sentence."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_jax.runtime.errors import UserError

# What such a file may have, and which command wants it.
_FUNCTIONS = {"get_config": "kd_jax.main", "get_study": "kd_jax.study"}
_LONGEST = 300


def call(text: str, function: str, example: str) -> Any:
    """Return what a function of `FILE` or `FILE:ARGUMENT` returns.

    Args:
      text: behind `--config=`.
      function: its name; it takes the argument, where there is one.
      example: a file that has it.

    Raises:
      UserError: there is no such file or function, it takes no argument or needs one, or it fails.
    """
    name, colon, argument = text.partition(":")
    module = _module(Path(name), example)
    if not callable(found := getattr(module, function, None)):
        other = next((f"; it is for {command}" for has, command in _FUNCTIONS.items()
                      if has != function and hasattr(module, has)), "")  # fmt: skip
        raise UserError(f"{name} has no {function}(): expected a file such as {example}{other}")
    arguments = [argument] if colon else []
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError:
        wanted = [p.name for p in inspect.signature(found).parameters.values()
                  if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]  # fmt: skip
        if colon and not wanted:
            raise UserError(
                f"--config={text}: {name} takes no argument, expected --config={name}"
            ) from None
        raise UserError(
            f"--config={text}: {name} needs {' and '.join(wanted)} as its argument, expected "
            f"--config={name}:{wanted[0].upper()}"
        ) from None
    try:
        return found(*arguments)
    except UserError:
        raise
    except ValueError as error:  # so these files refuse an argument
        raise UserError(f"--config={text}: {_in_short(error)}") from None
    except (Exception, SystemExit) as error:  # the file is a program, and this is its bug, not ours
        raise UserError(f"{name} fails with {type(error).__name__}: {_in_short(error)}") from error


def _module(path: Path, example: str) -> ModuleType:
    try:
        there = path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        there = False
    if path.suffix != ".py" or not there:
        raise UserError(f"--config={path} is no Python file: expected one such as {example}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of a class there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above
        sys.modules.pop(spec.name, None)
        raise UserError(f"{path} fails with {type(error).__name__}: {_in_short(error)}") from error
    return module


def _in_short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
