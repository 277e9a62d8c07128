"""Finished runs as one self-contained page: a table, figures, and where every number comes from.

    python -m kd_jax.report --out=report.html teacher=runs/t distilled=runs/d scratch=runs/s
    python -m kd_jax.report --out=report.html --study=DIR [--csv=FILE]

Reads what runs leave behind (docs/report.md), so it needs no accelerator and no JAX. The page has
no script and fetches nothing; it follows the reader's light or dark mode. Which rows are compared,
the configs decide: those that differ in one field. A study's unfinished runs are listed as such.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kd_jax.report import results
from kd_jax.report.page import write_study
from kd_jax.report.results import Study
from kd_jax.runtime import paths
from kd_jax.runtime.errors import UserError, fail


def main() -> None:
    """Write a report of the runs, or of the study, named on the command line."""
    parser = argparse.ArgumentParser(description="Write a report of finished runs.")
    parser.error = fail  # type: ignore[method-assign]  # one sentence, without the usage
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--csv", type=Path, help="a line a run, for programs")
    parser.add_argument("--title", default="kd_jax")
    parser.add_argument("--study", type=Path, help="directory of a study, instead of runs")
    parser.add_argument("runs", nargs="*", metavar="LABEL=WORKDIR")
    if remote := paths.why_not_in(sys.argv[1:]):
        fail(remote)
    options = parser.parse_args()
    try:
        study = _asked_for(options.study, options.runs, options.title)
        print(write_study(study, options.out, options.csv))
        print(f"report: {options.out}", file=sys.stderr)
    except UserError as error:
        fail(str(error))


def _asked_for(directory: Path | None, runs: list[str], title: str) -> Study:
    """Return what the command line names."""
    if directory and runs:
        raise UserError(f"--study={directory} and {runs[0]!r} are given: expected one or the other")
    if directory:
        return results.load_study(directory)
    if not runs:
        raise UserError("the following arguments are required: LABEL=WORKDIR, or --study=DIR")
    pairs = [text.partition("=") for text in runs]
    if bad := [label for label, equals, _ in pairs if not equals]:
        raise UserError(f"{bad[0]!r} is not LABEL=WORKDIR, such as distilled=runs/distilled")
    return results.load_runs({label: Path(place) for label, _, place in pairs}, title)


if __name__ == "__main__":
    main()
