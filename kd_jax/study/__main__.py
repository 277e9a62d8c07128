r"""Train a table of runs: what is missing is trained, what is done is skipped.

    python -m kd_jax.study --config=configs/studies/NAME.py[:epochs=3,seeds=2] --workdir=DIR \
        [--teachers=DIR]

The same command goes on with a study that was stopped, and tries again what failed. Started more
than once on one directory, on one machine or on several, each process takes the next free run.
Exit code 1 if a run failed; 75 if a signal stopped it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax.report import page as report_page
from kd_jax.report import records, statistics
from kd_jax.runtime import atomic_files, huge_pages, signals
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command
from kd_jax.study import leases, spec, worker
from kd_jax.study.leases import Leases
from kd_jax.training import workdir

_CONFIG = flags.DEFINE_string("config", "", "Study, e.g. configs/studies/table2.py:epochs=3.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the study; made when missing.")
_TEACHERS = flags.DEFINE_string("teachers", "", "Directory of the teachers' weights.")
_STALE_MINUTES = flags.DEFINE_float(
    "stale_minutes", 10.0, "After which silence a run is taken over.", lower_bound=0.2
)
_COHORTS = flags.DEFINE_bool("cohorts", True, "Train together what shares teacher and views.")
_MOST = flags.DEFINE_integer("most", 8, "Runs that train together.", lower_bound=1)

EXIT_FAILED = 1
_TABLES = ".tables"  # claimed by the process that writes what is of the whole study


def main(argv: Sequence[str]) -> None:
    """Train what is missing, write the tables and the page, and name what failed."""
    del argv
    if not _CONFIG.value:
        raise UserError("--config is missing: expected a study such as configs/studies/demo.py")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: expected the directory of this study")
    study = spec.load(_CONFIG.value)
    root = reachable(_WORKDIR.value, "--workdir")
    teachers = reachable(_TEACHERS.value, "--teachers") if _TEACHERS.value else None
    if teachers is not None and not teachers.is_dir():
        raise UserError(f"--teachers={teachers} is no directory: expected one with weights")
    check(root, study)
    stop = signals.StopRequest().listen()
    most = _MOST.value if _COHORTS.value else 1
    with Leases(root, 60 * _STALE_MINUTES.value, _leave_to_another) as own:
        _wait_for_tables(own)
        begin(root, study)
        own.release(_TABLES, "done")
        its = worker.start(study, root, teachers, most, own, stop)
        try:
            worker.work(its)
        except signals.StoppedError as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(signals.EXIT_STOPPED)
        _wait_for_tables(own)
        print(f"\n{_tell(its)}")
        own.release(_TABLES, "done")
    failures = {run.name: failed for run in study.runs if (failed := its.failure(run))}
    for name, failed in failures.items():
        print(f"failed: {name}: {failed['error']}", file=sys.stderr)
    if failures:
        sys.exit(EXIT_FAILED)


def _wait_for_tables(own: Leases) -> None:
    while own.take(_TABLES) is None:
        time.sleep(worker.POLL_SECONDS)


def check(root: Path, study: spec.Study) -> None:
    """Raise `UserError` unless the directory is new, empty, or of a study with these runs.

    Nothing is written. Runs may have been added or left out since; none may have another config.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"the workdir {root} is a file: expected a directory, new or of a study")
    if root.is_dir() and not (root / statistics.STUDY_FILE).exists():
        # A study that was killed in its first moment leaves its claims, and half a file.
        left = [path for path in root.iterdir() if not atomic_files.is_partial(path)]
        if any(path.name != leases.FOLDER for path in left):
            raise UserError(
                f"the workdir {root} holds other files and no {statistics.STUDY_FILE}: expected a "
                "new directory, or the one of an earlier start of this study"
            )
    for run in study.runs:
        workdir.check(root.resolve() / spec.FOLDER / run.name, run.config)


def begin(root: Path, study: spec.Study) -> None:
    """Write down what the study is."""
    rows = list(dict.fromkeys(run.row for run in study.runs))
    before = atomic_files.read_json(root / statistics.STUDY_FILE) or {"runs": []}
    names = {run.name for run in study.runs}
    if gone := [run["name"] for run in before["runs"] if run["name"] not in names]:
        logger.warning(
            "no longer in the study, and kept in %s: %s", root / spec.FOLDER, ", ".join(gone)
        )
    written = {
        "title": study.title,
        "baseline": study.baseline or rows[0],
        "runs": [
            {
                "name": run.name,
                "row": run.row,
                "seed": run.config.seed,
                "teacher": run.teacher,
                "published": run.published,
                "source": run.source,
                "workdir": f"{spec.FOLDER}/{run.name}",
            }
            for run in study.runs
        ],
    }
    atomic_files.write_json(root / statistics.STUDY_FILE, written)


def _tell(its: worker.Session) -> str:
    """Write the tables and the page, and return the table and where they are."""
    table = statistics.write(its.root)
    lines = [table, "", f"tables: {its.root}/table.md, table.csv, summary.json"]
    page = its.root / "report.html"
    report_page.write_study(records.of_study(its.root), page)
    lines.append(f"page: {page}")
    return "\n".join(lines)


def _leave_to_another(name: str, why: str) -> None:
    print(
        f"stopped: {name} {why}; the same command goes on with the other runs",
        file=sys.stderr,
        flush=True,
    )
    os._exit(signals.EXIT_STOPPED)


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
