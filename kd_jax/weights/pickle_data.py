"""Read a pickle as data: nothing that it names is imported, called or built.

A pickle is a program for a small stack machine. Python's own machine imports the names in the
program, calls them, and sets attributes of the results. This machine supports the plain containers
and the names that the caller defines, and refuses everything else. Its memory is bounded by the
length of the program and by the number of its steps.

A short program can describe a value of exponential size by referring to one tuple many times. So no
value of the program is hashed, compared or formatted before its type is known to be a plain one.

Source of the opcodes' meaning: Python's `pickletools`, which also splits the program into opcodes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MOST_BYTES = 8_000_000
_MOST_STEPS = 400_000  # memory: one object has up to about 100 bytes
_MOST_ARGUMENTS = 100
_DEEPEST = 20  # tuples in tuples; the arguments of a tensor are three deep
_LONGEST_KEY = 10_000
_MOST_PARTS = 10  # of a key that is a tuple


class RefusedError(Exception):
    """The pickle names something that is not known to be harmless."""


class Name(NamedTuple):
    """Module and name of a function or class in a pickle."""

    module: str
    name: str


class Thing:
    """Placeholder for an object that is not needed; it has no content."""


Calls = Mapping[Name, Callable[..., Any] | None]


def read(content: bytes, calls: Calls, load: Callable[[Any], Any]) -> Any:
    """Return the value that a pickle describes.

    Lists, tuples, dicts, strings, bytes and numbers are returned as such, a set as a list, a name
    as a `Name`. When the pickle calls a name, the result is that of its function in `calls`, or a
    `Thing`. Attributes that the pickle sets are ignored.

    Args:
      content: the pickle.
      calls: all names that are allowed, each with a function of the call's arguments, or None for
        a `Thing`.
      load: maps a persistent identifier to its object.

    Raises:
      RefusedError: it contains another name.
      ValueError: it is not a pickle, or too long. Errors of `calls` and `load` are passed on, and
        invalid programs also raise TypeError, KeyError and IndexError.
    """
    if len(content) > _MOST_BYTES:
        raise ValueError(f"its description has {len(content):,} bytes, more than {_MOST_BYTES:,}")
    machine = _Machine(calls, load)
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if steps + machine.num_copied > _MOST_STEPS:
            raise ValueError(f"its description has more than {_MOST_STEPS:,} steps")
        machine.step(opcode.name, argument)
    return machine.stack[-1]


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an item of a dict, if hashing the key takes a short time.

    Raises:
      ValueError: it may take long: nested tuples are hashed by recursion, in exponential time.
    """
    parts = key if type(key) is tuple else (key,)
    if len(parts) > _MOST_PARTS or not all(map(_is_plain, parts)):
        raise ValueError("a key is no plain value")
    target[key] = value


def check_arguments(arguments: Any) -> Any:
    """Return the arguments of a call unchanged.

    Raises:
      ValueError: they are not a tuple or list, or too many: each call copies them.
    """
    if not isinstance(arguments, (tuple, list)) or len(arguments) > _MOST_ARGUMENTS:
        raise ValueError(f"a call has no arguments, or more than {_MOST_ARGUMENTS}")
    return arguments


def _is_plain(part: Any) -> bool:
    if isinstance(part, (str, bytes)):
        return len(part) <= _LONGEST_KEY
    if isinstance(part, int):
        return part.bit_length() <= 64
    return isinstance(part, (float, type(None), Name, Thing))


_PUSH_OPCODES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
))  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEW_CONTAINERS: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
}
_IGNORED_OPCODES = frozenset(("PROTO", "FRAME", "STOP"))


class _Machine:
    """State of the stack machine: the stack, its marks, and the memo."""

    def __init__(self, calls: Calls, load: Callable[[Any], Any]):
        self.stack: list[Any] = []
        self.num_copied = 0  # number of elements copied by calls
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # id of a tuple that contains tuples -> (its depth, the tuple). The tuple is kept alive so
        # that no other object gets its id.
        self._nested_tuples: dict[int, tuple[int, Any]] = {}
        self._calls, self._load = calls, load

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        stack = self.stack
        if name in _PUSH_OPCODES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW_CONTAINERS:
            stack.append(_NEW_CONTAINERS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name not in _IGNORED_OPCODES:
            self._rarer_step(name, argument)

    def _rarer_step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            self._marks.append(len(stack))
        elif name == "POP":
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
        elif name == "POP_MARK":
            self._above_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(self._tuple(self._top(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(self._tuple(self._above_mark()))
        elif name in ("LIST", "FROZENSET"):
            stack.append(self._above_mark())
        elif name == "DICT":
            items = self._above_mark()
            stack.append({})
            self._set_items(items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._top(1) if name == "APPEND" else self._above_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._top(2) if name == "SETITEM" else self._above_mark())
        elif name == "BUILD":
            stack.pop()
        elif name in ("PERSID", "BINPERSID"):
            stack.append(self._load(argument if name == "PERSID" else stack.pop()))
        else:
            self._names_and_calls(name, argument)

    def _names_and_calls(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(self._known(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(self._known(*self._top(2)))
        elif name == "INST":
            arguments = self._above_mark()
            stack.append(self._call(self._known(*argument.split(" ", 1)), arguments))
        elif name == "OBJ":
            function, *arguments = self._above_mark()
            stack.append(self._call(function, arguments))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._top(2)
            stack.append(self._call(function, arguments))
        elif name == "NEWOBJ_EX":
            function, arguments, _ = self._top(3)
            stack.append(self._call(function, arguments))
        else:
            raise RefusedError(f"the opcode {name}")

    def _known(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is no text")
        full_name = Name(module, name)
        if full_name not in self._calls:
            raise RefusedError(".".join(full_name)[:100])
        return full_name

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name):
            raise ValueError("it calls something that is no function")
        call = self._calls[function]
        if call is None:
            return Thing()
        result = call(*check_arguments(arguments))
        if isinstance(result, dict):
            self.num_copied += sum(len(a) for a in arguments if isinstance(a, (tuple, list, dict)))
        return result

    def _tuple(self, items: list[Any]) -> tuple[Any, ...]:
        """Return a tuple of limited depth. Lists and dicts are never hashed and need no limit."""
        depths = (self._nested_tuples.get(id(x), (1,))[0] for x in items if type(x) is tuple)
        depth = 1 + max(depths, default=0)
        if depth > _DEEPEST:
            raise ValueError(f"its tuples are more than {_DEEPEST} deep")
        result = tuple(items)
        if depth > 1:
            self._nested_tuples[id(result)] = depth, result
        return result

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(target, key, value)

    def _top(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("its stack is empty")
        del self.stack[-count:]
        return items

    def _above_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items
