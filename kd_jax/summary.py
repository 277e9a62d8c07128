"""A study as one table: for every row the mean over its seeds, and how sure that is.

    python -m kd_jax.summary studies/table2

Reads `study.json` and the runs' `result.json` alone, so it needs no accelerator and no JAX, and may
be asked while the study goes on. Writes `table.md`, `table.csv` and `summary.json` beside them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kd_jax.report.statistics import write
from kd_jax.runtime.errors import UserError, fail


def main() -> None:
    """Write the tables of the study named on the command line, and print the one for people."""
    parser = argparse.ArgumentParser(description="Write the tables of a study.")
    parser.error = fail  # type: ignore[method-assign]  # one sentence, without the usage
    parser.add_argument("study", type=Path, metavar="STUDY")
    root = parser.parse_args().study
    try:
        print(write(root))
        print(f"tables: {root}/table.md, table.csv, summary.json", file=sys.stderr)
    except UserError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
