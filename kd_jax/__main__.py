"""List the commands, or run one of them.

    kd-jax                            every command with a line on what it does
    kd-jax main --config=... [...]    the same as python -m kd_jax.main --config=... [...]

The commands are found in the tree: a file directly in `kd_jax/` is one, and so is a part with a
`__main__.py`. Their first lines are read from their sources, so listing them imports no JAX.
"""

from __future__ import annotations

import ast
import difflib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import kd_jax
from kd_jax.runtime import console, errors

_PACKAGE = Path(__file__).parent


def command_files() -> dict[str, Path]:
    """Return the source file of each command by the command's name, sorted by name."""
    files = {path.stem: path for path in _PACKAGE.glob("[!_]*.py")}
    files |= {path.parent.name: path for path in _PACKAGE.glob("*/__main__.py")}
    return dict(sorted(files.items()))


def listing() -> str:
    """Return the commands as text: one line each, the name and the first line of its docstring."""
    files = command_files()
    width = max(map(len, files))
    lines = [f"  {name:<{width}}  {_first_line(path)}" for name, path in files.items()]
    usage = "Usage: kd-jax COMMAND [options], or python -m kd_jax.COMMAND [options]"
    return "\n".join(
        [usage, "", *lines, "", "kd-jax COMMAND --help lists the options of a command."]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; without one, print the list of commands.

    Args:
      argv: program name and arguments; `sys.argv` by default.
    """
    arguments = list(sys.argv if argv is None else argv)[1:]
    if not arguments or arguments[0] in ("help", "-h", "-help", "--help"):
        with console.until_the_reader_leaves():
            print(listing())
        return
    name, *rest = arguments
    if name in ("version", "--version"):
        print(kd_jax.__version__)
        return
    files = command_files()
    if name not in files:
        close = difflib.get_close_matches(name, files, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(files)}"
        errors.fail(f"unknown command {name!r}: {hint} (kd-jax alone lists the commands)")
    # As python -m does, so that a config of the user can import files of the current directory.
    if (directory := os.getcwd()) not in sys.path:
        sys.path.insert(0, directory)
    sys.argv = [str(files[name]), *rest]
    # The command becomes `__main__`: --help shows its docstring, and new processes import it.
    runpy.run_module(f"kd_jax.{name}", run_name="__main__", alter_sys=True)


def _first_line(path: Path) -> str:
    """Return the first line of a module's docstring, read without importing the module."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


if __name__ == "__main__":
    main()
