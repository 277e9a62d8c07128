"""The answer to `--help`: the docstring of a command's module, and its flags."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

_REQUESTS = ("--help", "-help", "-h")
_PACKAGES = ("kd_jax", "benchmarks", "ml_collections")  # whose flags are a command's own


def is_requested(arguments: Sequence[str]) -> bool:
    """Tell whether a command's arguments ask for help; those behind `--` are of another command."""
    arguments = list(arguments)
    own_count = arguments.index("--") if "--" in arguments else len(arguments)
    return any(argument in _REQUESTS for argument in arguments[:own_count])


def text(main: Callable[..., Any]) -> str:
    """Return the help of a command, from the module of its `main` and the flags of absl."""
    from absl import flags

    lines = [(sys.modules[main.__module__].__doc__ or "").strip(), "", "Flags:"]
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.partition(".")[0] in _PACKAGES:
            for flag in module_flags:
                default = "" if flag.default in (None, "") else f" Default: {flag.default_as_str}."
                lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines if len(lines) > 3 else lines[:1])
