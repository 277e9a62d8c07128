"""Finished runs as one self-contained page: a table, figures, and where every number comes from.

    python -m kd_jax.report --out=report.html teacher=runs/t distilled=runs/d scratch=runs/s
    python -m kd_jax.report --out=report.html --study=DIR [--csv=FILE]

Reads what runs leave behind (docs/report.md), so it needs no accelerator and no JAX. The page has
no script and fetches nothing; it follows the reader's light or dark mode. Which rows are compared,
the configs decide: those that differ in one field. A study's unfinished runs are listed as such.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax.report import results
from kd_jax.report.page import write_study
from kd_jax.report.results import Study
from kd_jax.runtime.errors import UserError, run_command

_OUT = flags.DEFINE_string("out", "report.html", "File of the page.")
_CSV = flags.DEFINE_string("csv", None, "File for a line per run, for programs.")
_TITLE = flags.DEFINE_string("title", "kd_jax", "Title of the page.")
_STUDY = flags.DEFINE_string("study", None, "Directory of a study, instead of LABEL=WORKDIR.")


def main(argv: Sequence[str]) -> None:
    """Write a report of the runs, or of the study, named on the command line."""
    study = _read(Path(_STUDY.value) if _STUDY.value else None, argv[1:], _TITLE.value)
    out = Path(_OUT.value)
    print(write_study(study, out, Path(_CSV.value) if _CSV.value else None))
    print(f"report: {out}", file=sys.stderr)


def check(arguments: Sequence[str]) -> None:
    """Raise `UserError` where a flag has no value: absl would take the next flag as the value."""
    names = {f"--{flag.name}" for flag in (_OUT, _CSV, _TITLE, _STUDY)}
    for argument, next_argument in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument in names and next_argument.startswith("--"):
            raise UserError(f"argument {argument}: expected one argument")


def _read(directory: Path | None, runs: Sequence[str], title: str) -> Study:
    """Return the study in `directory`, or the runs that are given as `LABEL=WORKDIR`."""
    if directory and runs:
        raise UserError(f"--study={directory} and {runs[0]!r} are given: expected one or the other")
    if directory:
        return results.load_study(directory)
    if not runs:
        raise UserError("the following arguments are required: LABEL=WORKDIR, or --study=DIR")
    pairs = [text.partition("=") for text in runs]
    if faults := [label for label, equals, _ in pairs if not equals]:
        raise UserError(f"{faults[0]!r} is not LABEL=WORKDIR, such as distilled=runs/distilled")
    return results.load_runs({label: Path(place) for label, _, place in pairs}, title)


if __name__ == "__main__":
    run_command(main, takes_words=True, check=check)
