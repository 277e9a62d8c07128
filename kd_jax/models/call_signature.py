"""How a user's module is called: which argument or field switches it between training and eval."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

import flax.linen as nn

from kd_jax.runtime.errors import UserError

# Names of a training switch, and whether True means eval mode.
SWITCHES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
RANDOM = ("dropout_keys", "rngs")  # optional arguments that carry random keys
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class CallSignature(NamedTuple):
    """What `__call__` takes besides the images.

    Attributes:
      switch: name of the training switch, one of `SWITCHES`; None without any.
      is_field: whether it is a field of the module, and no argument of its `__call__`.
      takes: those names of `RANDOM` that are arguments.
    """

    switch: str | None
    is_field: bool
    takes: frozenset[str]

    def mode(self, train: bool) -> dict[str, bool]:
        """Return the value of the switch by its name; empty without a switch."""
        return {} if self.switch is None else {self.switch: train != SWITCHES[self.switch]}


def read(arch: str, module: Any) -> CallSignature:
    """Return what the `__call__` of a Linen or NNX module takes.

    Args:
      arch: name of the network, for the error.
      module: an instance.

    Raises:
      UserError: `__call__` takes no images, or an argument whose value nobody knows; or what
        switches it is ambiguous.
    """
    call = type(module).__call__
    if isinstance(module, nn.Sequential) and call is nn.Sequential.__call__:
        return CallSignature(None, False, frozenset())  # *args and **kwargs are its first layer's
    parameters = list(inspect.signature(call).parameters.values())[1:]
    if not parameters or parameters[0].kind not in (parameters[0].POSITIONAL_ONLY, _BY_NAME[0]):
        raise UserError(
            f"{arch} has __call__{inspect.signature(call)}: expected the images as its first "
            "argument, as in __call__(self, x, train)"
        )
    others = parameters[1:]
    arguments = [p.name for p in others if p.name in SWITCHES and p.kind in _BY_NAME]
    fields = _fields(module)
    if len({*arguments, *fields}) > 1 or (arguments and fields):
        named = [f"the argument {name}" for name in arguments]
        named += [f"the field {name}={value}" for name, value in fields.items()]
        raise UserError(
            f"{arch} can be switched to training by {' and by '.join(named)}, and it is not clear "
            "by which: expected one of them, and a field of such a name to be None"
        )
    takes = frozenset(p.name for p in others if p.name in RANDOM and p.kind in _BY_NAME)
    for parameter in others:
        if parameter.kind in _VARIADIC:
            if not arguments and not fields:
                raise UserError(
                    f"{arch} takes {parameter} in __call__, and whether a training switch is among "
                    f"it is not clear: expected one of {', '.join(SWITCHES)} by its name, or none "
                    "and no such argument"
                )
        elif parameter.default is parameter.empty and parameter.name not in {*arguments, *takes}:
            raise UserError(
                f"{arch} takes {parameter.name} in __call__ without a default, and training does "
                f"not know its value: expected the images, one of {', '.join(SWITCHES)}, and "
                "defaults for everything else"
            )
    switch = next(iter([*arguments, *fields]), None)
    return CallSignature(switch, bool(fields), takes)


def _fields(module: Any) -> dict[str, Any]:
    """Return the fields of a Linen module that are a training switch and have a value."""
    if not isinstance(module, nn.Module):
        return {}  # `train()` and `eval()` set those of an NNX module
    names = {field.name for field in dataclasses.fields(module)} & set(SWITCHES)
    values = {name: getattr(module, name) for name in sorted(names)}
    return {name: value for name, value in values.items() if value is not None}
