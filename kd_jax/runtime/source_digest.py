"""Digests of the code that a user gave: of a function, or of a module with all that it is made of.

A run that goes on must go on with the same loss and the same network, and those are Python code
here. The digest covers the source of a function or class, and of every function and class that it
refers to outside of installed libraries; default arguments, the values that a closure holds, the
global constants that are read, and the fields of an object. It is the same in another process. A
comment is part of the source.

Where `inspect` finds no source (`python -c`), the compiled code takes its place: that differs
between versions of Python.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import site
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LIBRARIES = ("flax", "jax", "jaxlib", "kd_jax", "numpy", "optax")  # wherever they are installed
_UNSET = ("parent", "name")  # fields of every Linen module that say where it is, not what
_OF_NNX = "_pytree__"  # attributes by which NNX keeps track of the others
_GENERATED = "__create_fn__"  # where `dataclasses` makes methods from the fields


def of_function(function: Any) -> str:
    """Return the sha256, in hex, of all that defines a function."""
    return _Digest(function).hexdigest()


def of_module(module: Any) -> str:
    """Return the sha256, in hex, of all that defines a Linen or NNX module.

    That is its class, and its fields or attributes. The values of arrays in `nnx.Variable` are no
    part of it, their shapes and dtypes are.
    """
    return _Digest(module).hexdigest()


def named(thing: Any) -> str:
    """Return the name and the first 16 digits of a function or module, as records have them."""
    name = getattr(thing, "__name__", type(thing).__name__)
    return f"{name} {_Digest(thing).hexdigest()[:16]}"


class _Digest:
    """A digest over a value and everything that it is made of; each thing is looked at once."""

    def __init__(self, root: Any):
        self._sha256 = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no id is used again
        self._package = _package_of(root)
        self._add(root)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()

    def _write(self, *words: Any) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            self._sha256.update(b"%d:" % len(data) + data)

    def _add(self, value: Any) -> None:
        """Add any value."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self._write(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self._write("again", self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        self._write(f"{type(value).__module__}.{type(value).__qualname__}")
        if isinstance(value, Mapping):
            self._add_named(value.items())
        elif isinstance(value, list | tuple):
            self._write(len(value))
            for part in value:
                self._add(part)
        elif isinstance(value, set | frozenset):
            self._write(*sorted(map(repr, value)))
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._add(part)
        elif isinstance(value, types.MethodType):
            self._add(value.__func__)
            self._add(value.__self__)
        elif isinstance(value, staticmethod | classmethod):
            self._add(value.__func__)
        elif isinstance(value, property | functools.cached_property):
            for part in ("fget", "fset", "fdel", "func"):
                self._add(getattr(value, part, None))
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.ModuleType):
            self._write(value.__name__)
        elif callable(getattr(value, "__wrapped__", None)):  # a function under `jax.jit`
            self._add(value.__wrapped__)
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            self._add_array(value)
        else:
            self._add_object(value)

    def _add_named(self, items: Iterable[tuple[Any, Any]]) -> None:
        for name, part in sorted(items, key=lambda item: repr(item[0])):
            self._write(name)
            self._add(part)

    def _add_array(self, array: Any) -> None:
        self._write(array.dtype, array.shape)
        if not _is_of_flax(array, "nnx", "Variable") and isinstance(array.dtype, np.dtype):
            self._write(np.asarray(array).tobytes())

    def _add_object(self, value: Any) -> None:
        self._add(type(value))
        if _is_of_flax(value, "nnx", "Variable"):
            return  # the state of a random generator, which has no shape of its own
        attributes = getattr(value, "__dict__", {})
        if dataclasses.is_dataclass(value):
            fields = {
                field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)
            }
            linen = _is_of_flax(value, "linen", "Module")  # keeps more than its fields
            attributes = fields if linen else attributes | fields
            for name in _UNSET if linen else ():
                attributes.pop(name, None)
        if attributes:
            self._add_named(
                (name, part) for name, part in attributes.items() if not name.startswith(_OF_NNX)
            )
        elif " at 0x" not in (text := repr(value)):
            self._write(text)

    def _add_class(self, kind: type) -> None:
        self._write(f"{kind.__module__}.{kind.__qualname__}")
        if not self._is_users(kind):
            return
        for base in kind.__bases__:
            self._add(base)
        # Member by member: `inspect` may take another class of the same name for this one.
        self._add_named(
            (name, part)
            for name, part in vars(kind).items()
            if (not name.startswith("__") or isinstance(part, types.FunctionType))
            and not name.startswith(("_abc_", _OF_NNX))
            and not _is_generated(part)
        )

    def _add_function(self, function: types.FunctionType) -> None:
        self._write(f"{function.__module__}.{function.__qualname__}")
        if callable(inner := getattr(function, "__wrapped__", None)):
            self._add(inner)
        if not self._is_users(function):
            return
        self._add_code(function.__code__)
        self._add(function.__defaults__)
        self._add(function.__kwdefaults__)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            self._write(name)
            try:
                self._add(cell.cell_contents)
            except ValueError:  # not yet set
                self._write("empty")
        names = sorted(set(_names(function.__code__)))
        for name in names:
            if name in function.__globals__:
                self._write(name)
                self._add_global(function.__globals__[name], names)

    def _add_global(self, value: Any, names: list[str]) -> None:
        """Add what a global name stands for; of a user's module what is read from it."""
        self._add(value)
        if isinstance(value, types.ModuleType) and self._is_users(value):
            self._add_named((name, vars(value)[name]) for name in names if name in vars(value))

    def _add_code(self, code: types.CodeType) -> None:
        try:
            self._write(textwrap.dedent(inspect.getsource(code)))
        except (OSError, TypeError):
            self._add_compiled(code)

    def _add_compiled(self, code: types.CodeType) -> None:
        self._write(code.co_code, code.co_names, code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._add_compiled(constant)
            else:
                self._add(constant)

    def _is_users(self, thing: Any) -> bool:
        """Return whether code is the user's: not of an installed library, or of the root's."""
        name, path = _place(thing)
        package = name.partition(".")[0]
        if package in _LIBRARIES:
            return thing is self._alive[0] or thing is type(self._alive[0])
        if package in (self._package, "__main__"):
            return True
        if path is None:  # built into Python
            return False
        return not any(Path(path).is_relative_to(folder) for folder in _library_folders())


def _place(thing: Any) -> tuple[str, str | None]:
    """Return the Python module in which a module, class or function was defined, and the file.

    Decorators give their functions the `__module__` of what they decorate; globals are true.
    """
    if isinstance(thing, types.FunctionType):
        namespace = thing.__globals__
    elif isinstance(thing, types.ModuleType):
        namespace = vars(thing)
    else:
        namespace = vars(sys.modules.get(thing.__module__, types.ModuleType(thing.__module__)))
    return namespace.get("__name__") or "", namespace.get("__file__")


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    """Return the folders of installed libraries and of Python's own."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_path(name) for name in names}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(folder) for folder in sorted(filter(None, folders)))


def _package_of(thing: Any) -> str:
    """Return the first part of the name of the Python module in which something is defined."""
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return str(module).partition(".")[0]


def _names(code: types.CodeType) -> Iterable[str]:
    """Yield the names that a function reads, those of functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_of_flax(value: Any, package: str, name: str) -> bool:
    """Return whether a value is an instance of a class of Flax, which is not imported for that."""
    return any(
        kind.__name__ == name and kind.__module__.startswith(f"flax.{package}")
        for kind in type(value).__mro__
    )


def _is_generated(part: Any) -> bool:
    """Return whether a method was made by `dataclasses` or by Flax, and so follows the fields."""
    code = getattr(part, "__code__", None)
    return code is not None and bool(re.match(_GENERATED, code.co_qualname))
