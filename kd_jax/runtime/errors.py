"""The one kind of error that is meant for people, and how commands report it."""

from __future__ import annotations

import errno
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kd_jax.runtime import backend, command_help, console, paths

EXIT_USER_ERROR = 2
_LONGEST = 200  # letters of a path that are shown
_PLAIN = {
    r"invalid literal for int\(\) with base \d+: .*": "a whole number",
    r"could not convert string to float: .*": "a number",
    r"\('Non-boolean argument to boolean flag', .*\)": "true or false",
}


class UserError(Exception):
    """A wrong input, told in one sentence: the value, what was expected, what to do.

    Commands print it without a traceback and exit with code 2. Any other exception is a bug of
    ours and keeps its traceback.
    """


class DivergedError(UserError):
    """A number of training, or a network's answer, is not finite."""


def run_command(
    main: Callable[[Sequence[str]], None],
    argv: Sequence[str] | None = None,
    *,
    takes_words: bool = False,
    check: Callable[[Sequence[str]], None] = lambda arguments: None,
) -> None:
    """Run a command's `main`, turning `UserError` into one line on stderr and exit code 2.

    Where nobody reads its output any more it ends quietly, with `console.EXIT_READER_GONE`.

    Args:
      main: takes the arguments after absl has removed the flags that it knows.
      argv: program name and arguments; `sys.argv` by default.
      takes_words: whether there may be arguments that are no flags.
      check: is given the arguments before absl reads them, and raises `UserError`.
    """
    console.set_up()
    with console.until_the_reader_leaves():
        _run(main, list(sys.argv if argv is None else argv), takes_words, check)


def _run(
    main: Callable[[Sequence[str]], None],
    given: list[str],
    takes_words: bool,
    check: Callable[[Sequence[str]], None],
) -> None:
    from absl import flags

    if command_help.is_requested(given[1:]):
        print(command_help.text(main))
        return
    if remote := paths.why_not_in(given[1:]):
        fail(remote)
    try:
        check(given[1:])
        flags.FLAGS.set_gnu_getopt(True)  # flags may stand behind other arguments
        rest = flags.FLAGS(given)
        _check_finite(flags.FLAGS)
    except UserError as error:
        fail(str(error))
    except flags.Error as error:
        fail(_plain(str(error)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises these where a file's own config lacks a field that is overridden.
        reason = str(error.args[0]) if error.args else type(error).__name__
        fail(f"an override does not fit the config of the file: {reason}")
    try:
        if len(rest) > 1 and not takes_words:
            raise UserError(
                f"unexpected argument {rest[1]!r}: every option is written --name=value, and a "
                "config field --config.field=value"
            )
        main(rest)
    except DivergedError as error:
        fail(
            f"{error}: training has diverged; an earlier checkpoint may be good "
            "(kd_jax.evaluate --checkpoint=best), or train again with a lower "
            "config.learning_rate and another --workdir"
        )
    except UserError as error:
        fail(str(error))
    except (AssertionError, RuntimeError):  # so JAX ends where it is told to use what is not there
        if missing := backend.complaint():
            fail(missing)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def local(place: str | Path, what: str) -> Path:
    """Return a path that people gave, `~` expanded.

    Args:
      place: as it was given.
      what: the option that it was given for, for the sentence.

    Raises:
      UserError: it is a URL, or in the home of somebody who has none.
    """
    if problem := paths.why_not(place, what):
        raise UserError(problem)
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise UserError(
            f"{what} is {str(place)[:_LONGEST]!r}, and that home directory is not known: give the "
            "whole path"
        ) from None


def reachable(place: str | Path, what: str) -> Path:
    """Return a path that people gave, as `local`; `Path.exists` and the like do not fail for it.

    Raises:
      UserError: as there; or no file can have this name, or one may not look at what is there.
    """
    path = local(place, what)
    try:
        os.stat(path)
        return path
    except ValueError as error:  # a zero byte
        problem = str(error)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return path
        problem = str(error.strerror)
    raise UserError(
        f"{what} is {str(place)[:_LONGEST]!r}, which cannot be looked at ({problem}): give another "
        "path, or make that one readable"
    )


def _check_finite(values: Any) -> None:
    """Raise `UserError` at a flag of absl that is `nan` or `inf`: no bound of a flag finds these.

    Fields of a config have checks of their own.
    """
    for name in values:
        value = None if "." in name else values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value}: expected a number that is finite")


def _plain(text: str) -> str:
    """Return what absl says of a flag's value without Python's own words."""
    for pattern, expected in _PLAIN.items():
        text = re.sub(pattern, f"expected {expected}", text, flags=re.DOTALL)
    return text


def in_short(error: BaseException, longest: int = 160, ending: int = 0) -> str:
    """Return what an error says on one line, cut to a length; its kind where it says nothing.

    Args:
      error: of another library.
      longest: letters that are shown.
      ending: how many of them are the last ones, for errors that end with the cause.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= longest:
        return text
    if not ending:
        return text[: longest - 3] + "..."
    return f"{text[: longest - ending - 5]} ... {text[-ending:]}"


def tell(message: str) -> None:
    """Print `error: message` as one line on stderr, behind what was printed before."""
    sys.stdout.flush()
    print("error: " + " ".join(message.split()), file=sys.stderr)


def fail(message: str) -> NoReturn:
    """Print `error: message` as one line on stderr and exit with code 2."""
    tell(message)
    sys.exit(EXIT_USER_ERROR)
