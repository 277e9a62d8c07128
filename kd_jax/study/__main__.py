r"""Train the runs of a study: missing runs are trained, finished ones are skipped.

    python -m kd_jax.study --config=configs/studies/NAME.py[:epochs=3,seeds=2] --workdir=DIR \
        [--teachers=DIR]

The same command continues a study that was stopped, and tries failed runs again. It may be started
several times on one directory, on one machine or on several: each process trains the next free run.
Exit code: 1 if a run failed, 75 if a signal stopped the process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from kd_jax.report import page as report_page
from kd_jax.report import results, statistics
from kd_jax.runtime import atomic_files, huge_pages, signals
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command
from kd_jax.study import lease_files, spec, worker
from kd_jax.study.leases import Leases
from kd_jax.training import workdir

_CONFIG = flags.DEFINE_string(
    "config", "", "Study, e.g. configs/studies/table2.py:epochs=3 or kd_jax:studies/crd."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the study; made when missing.")
_TEACHERS = flags.DEFINE_string("teachers", "", "Directory of the teachers' weights.")
_STALE_MINUTES = flags.DEFINE_float(
    "stale_minutes", 10.0, "Age at which the lease of a run is stale.", lower_bound=0.2
)
_COHORTS = flags.DEFINE_bool(
    "cohorts", True, "Train runs with the same teacher and views together."
)
_MOST = flags.DEFINE_integer("most", 8, "Most runs that are trained together.", lower_bound=1)
_RECORD = flags.DEFINE_bool(
    "record", False, "Record the teachers' answers, and replay them for runs that see the same."
)

EXIT_FAILED = 1
_TABLES = ".tables"  # lease of the process that writes the files of the whole study


def main(argv: Sequence[str]) -> None:
    """Train the missing runs, write the tables and the page, and list the failed runs."""
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
    with Leases(root, 60 * _STALE_MINUTES.value, _exit_on_lost_lease) as leases:
        with _tables_lease(leases):
            begin(root, study)
        study_worker = worker.create(
            study, root, teachers, most, leases, stop, record=_RECORD.value
        )
        try:
            study_worker.work()
        except signals.StoppedError as error:
            print(error, file=sys.stderr)
            sys.exit(signals.EXIT_STOPPED)
        with _tables_lease(leases):
            print(f"\n{_write_report(root)}")
    failures = {run.name: failure for run in study.runs if (failure := study_worker.failure(run))}
    for name, failure in failures.items():
        print(f"failed: {name}: {failure['error']}", file=sys.stderr)
    if failures:
        sys.exit(EXIT_FAILED)


@contextlib.contextmanager
def _tables_lease(leases: Leases) -> Iterator[None]:
    """Wait for the lease on the files of the whole study, and release it if the block succeeds."""
    while leases.acquire(_TABLES) is None:
        time.sleep(worker.POLL_SECONDS)
    yield
    leases.release(_TABLES, "done")


def check(root: Path, study: spec.Study) -> None:
    """Check that a directory is new, empty, or of a study with these runs. Writes nothing.

    Runs may have been added or left out since; the config of a run may not have changed.

    Raises:
      UserError: the directory is of something else, or a run has another config.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"the workdir {root} is a file: expected a directory, new or of a study")
    if root.is_dir() and not (root / statistics.STUDY_FILE).exists():
        # A study that was killed at its start leaves leases and a partial file.
        paths = [path for path in root.iterdir() if not atomic_files.is_partial(path)]
        if any(path.name != lease_files.FOLDER for path in paths):
            raise UserError(
                f"the workdir {root} holds other files and no {statistics.STUDY_FILE}: expected a "
                "new directory, or the one of an earlier start of this study"
            )
    for run in study.runs:
        workdir.check(root.resolve() / spec.FOLDER / run.name, run.config)


def begin(root: Path, study: spec.Study) -> None:
    """Write `study.json`, and warn about runs that are no longer in the study."""
    rows = list(dict.fromkeys(run.row for run in study.runs))
    previous_study = atomic_files.read_json(root / statistics.STUDY_FILE) or {"runs": []}
    names = {run.name for run in study.runs}
    if old_names := [run["name"] for run in previous_study["runs"] if run["name"] not in names]:
        logger.warning(
            "no longer in the study, and kept in %s: %s",
            root / spec.FOLDER,
            ", ".join(old_names),
        )
    content = {
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
    atomic_files.write_json(root / statistics.STUDY_FILE, content)


def _write_report(root: Path) -> str:
    """Write the tables and the page of a study; return the table and the paths of the files."""
    table = statistics.write(root)
    page = root / "report.html"
    report_page.write_study(results.load_study(root), page)
    tables = f"tables: {root}/table.md, table.csv, {statistics.SUMMARY_FILE}"
    return "\n".join([table, "", tables, f"page: {page}"])


def _exit_on_lost_lease(name: str, reason: str) -> None:
    """End this process, also its main thread, because another process may have the run."""
    print(
        f"stopped: {name} {reason}; the same command goes on with the other runs",
        file=sys.stderr,
        flush=True,
    )
    os._exit(signals.EXIT_STOPPED)


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
