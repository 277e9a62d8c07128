"""Load a Python file by its path, and call the function of a config file.

`kd_jax:NAME` stands for a file that comes with the package: `configs/NAME.py` of the repository,
which is in the wheel too. Everything that can be wrong with a file is one sentence (`UserError`).
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
_SHIPPED = "kd_jax:"
_PACKAGE = Path(__file__).resolve().parents[1]


def shipped() -> dict[str, Path]:
    """Return the files that come with the package by their names, such as `studies/crd`, sorted."""
    in_wheel, in_checkout = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    folder = in_wheel if in_wheel.is_dir() else in_checkout
    paths = sorted(folder.rglob("*.py"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def split(text: str) -> tuple[str, bool, str]:
    """Split the value of `--config` at the colon before its argument.

    Args:
      text: `FILE`, `FILE:ARGUMENT`, `kd_jax:NAME` or `kd_jax:NAME:ARGUMENT`.

    Returns:
      the file as it was given, whether there is an argument, and the argument.
    """
    prefix = _SHIPPED if text.startswith(_SHIPPED) else ""
    name, colon, argument = text.removeprefix(prefix).partition(":")
    return prefix + name, bool(colon), argument


def call(text: str, function: str, example: str) -> Any:
    """Return what a function of a config file returns.

    Args:
      text: the value of `--config`, see `split`.
      function: name of the function; it is given the argument, if there is one.
      example: path of a file that has this function, for the error sentences.

    Raises:
      UserError: there is no such file or function, it takes no argument or needs one, or it fails.
    """
    name, has_argument, argument = split(text)
    module = load(_path(name), example)
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
    arguments = [argument] if has_argument else []
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
        name = path.as_posix().removesuffix(".py").removeprefix("configs/")
        advice = f", or {_SHIPPED}{name}, which comes with kd_jax" if name in shipped() else ""
        problem = "is no Python file" if is_file or path.suffix != ".py" else "is not there"
        raise UserError(f"--config={path} {problem}: expected a file such as {example}{advice}")
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


def _path(name: str) -> Path:
    """Return the path of a file that was given by its path or as `kd_jax:NAME`.

    Raises:
      UserError: no file of that name comes with the package.
    """
    if not name.startswith(_SHIPPED):
        return Path(name)
    files = shipped()
    short = name.removeprefix(_SHIPPED).removesuffix(".py")
    if short not in files:
        names = ", ".join(_SHIPPED + each for each in files)
        raise UserError(
            f"--config={name} does not come with kd_jax: expected one of {names}, or the "
            "path of a Python file of your own"
        )
    return files[short]


def _check_arguments(text: str, function: Callable[..., Any], arguments: list[str]) -> None:
    """Raise `UserError` unless a function may be called with these arguments."""
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
        return
    except TypeError:
        pass
    name, has_argument, _ = split(text)
    required = [p.name for p in signature.parameters.values()
                if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]  # fmt: skip
    if has_argument and not required:
        raise UserError(f"--config={text}: {name} takes no argument, expected --config={name}")
    raise UserError(
        f"--config={text}: {name} needs {' and '.join(required)} as its argument, expected "
        f"--config={name}:{required[0].upper()}"
    )
