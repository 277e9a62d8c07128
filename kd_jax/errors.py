"""The one kind of error that is meant for people, and how commands report it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kd_jax import console, places

EXIT_USER_ERROR = 2


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
) -> None:
    """Run a command's `main`, turning `UserError` into one line on stderr and exit code 2.

    Args:
      main: takes the arguments after absl has removed the flags that it knows.
      argv: program name and arguments; `sys.argv` by default.
      takes_words: whether there may be arguments that are no flags.
    """
    from absl import flags

    console.set_up()
    arguments = list(sys.argv if argv is None else argv)
    if remote := places.why_not_in(arguments[1:]):
        fail(remote)
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        fail(str(error))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises these for an unknown field or a value of the wrong type.
        fail(_first_line(error))
    except Exception as error:  # the config file is a program, and this is its bug, not ours
        fail(f"the config file fails with {type(error).__name__}: {_first_line(error)}")
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def local(place: str | Path, what: str) -> Path:
    """Return a path that people gave, `~` expanded.

    Args:
      place: as it was given.
      what: the option that it was given for, for the sentence.

    Raises:
      UserError: it is a URL.
    """
    if problem := places.why_not(place, what):
        raise UserError(problem)
    return Path(place).expanduser()


def fail(message: str) -> NoReturn:
    """Print `error: message` as one line on stderr and exit with code 2."""
    sys.stdout.flush()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    # ml_collections wraps an error in a config file as "Error whilst parsing ...\n\n<traceback>":
    # the last line is the one that says what is wrong.
    if lines and "Error whilst parsing config file" in lines[0]:
        return f"the config file cannot be read: {lines[-1]}"
    return lines[0] if lines else repr(error)
