"""Write a study as one table: for every row the mean over its seeds, and the uncertainty.

    python -m kd_jax.summary studies/table2
    python -m kd_jax.summary studies/table2 --keep=results/table2

Reads only `study.json` and the runs' `result.json`, so it needs no accelerator and no JAX, and can
be used while the study is running. Writes `table.md`, `table.csv` and `summary.json` beside them.
`--keep` copies them, and of each finished run all but weights and names of places, to a directory
that can be committed: `python -m kd_jax.report --study=DIR` draws the page from it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax.report import kept
from kd_jax.report.statistics import write
from kd_jax.runtime.errors import UserError, reachable, run_command

_KEEP = flags.DEFINE_string("keep", None, "Directory for a copy without weights and paths.")


def main(argv: Sequence[str]) -> None:
    """Write the tables of the study named on the command line, and print the one for people."""
    if len(argv) < 2:
        raise UserError("the following arguments are required: STUDY, the directory of a study")
    if len(argv) > 2:
        raise UserError(f"unexpected argument {argv[2]!r}: expected the directory of one study")
    root = reachable(argv[1], "STUDY")
    print(write(root))
    print(f"tables: {root}/table.md, table.csv, summary.json", file=sys.stderr)
    if _KEEP.value:
        names = kept.keep(root, Path(_KEEP.value))
        print(f"kept {len(names)} finished runs in {_KEEP.value}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, takes_words=True)
