"""Runs and studies read from their files for the report; needs no accelerator and no JAX.

A `Row` is one line of the table: one run, or several that differ in their seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax import config as config_lib
from kd_jax.report import table2
from kd_jax.report.statistics import STUDY_FILE
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.training import metric_logger, workdir

PROBE_FILE = "probe.json"
_REQUIRED = {"student": str, "dataset": str, "test_top1": (int, float, type(None)), "steps": int,
             "epochs": (int, float)}  # fmt: skip
_NUMBERS = ("teacher_top1", "test_ece", "agreement", "kl_to_teacher", "params", "madds",
            "images_per_second")  # fmt: skip  # each may be missing, or None
_NUMBER_OR_NONE = (int, float, type(None))


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      name: for people.
      directory: its workdir.
      result: content of `result.json`; empty while the run is unfinished.
      config: flat, `field.path` to value; empty if there is no `config.json`.
      train, val: records of `metrics.jsonl`, each with its `epoch`.
      certificate: content of `teacher.json`; None if there is none.
      probe: content of `probe.json`, which `kd_jax.probe` writes; None if there is none.
    """

    name: str
    directory: Path
    result: dict[str, Any]
    config: dict[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    certificate: dict[str, Any] | None
    probe: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Row:
    """Finished runs that differ only in the seed; there is at least one."""

    label: str
    runs: tuple[Run, ...]
    published: table2.Published | None

    @property
    def first(self) -> Run:
        """The first run, for what all runs of the row have in common."""
        return self.runs[0]

    def values(self, field: str) -> list[float]:
        """Return a field of `result.json` of each run that has it."""
        values = [run.result.get(field) for run in self.runs]
        return [value for value in values if value is not None]

    def mean(self, field: str) -> float | None:
        """Return the mean of a field over the seeds; None if no run has it."""
        values = self.values(field)
        return sum(values) / len(values) if values else None


def headline(rows: Sequence[Row]) -> str:
    """Return the measure that rows are compared by: accuracy, or agreement where a row has none.

    A run on images without labels has no accuracy.
    """
    return "test_top1" if all(row.values("test_top1") for row in rows) else "agreement"


@dataclasses.dataclass(frozen=True)
class Study:
    """The content of a report.

    Attributes:
      title: of the page.
      baseline: label of the row that the others are compared with, if there is one.
      rows: with at least one finished run each.
      unfinished: all other runs, each with the label of its row.
    """

    title: str
    baseline: str | None
    rows: tuple[Row, ...]
    unfinished: tuple[tuple[str, Run], ...] = ()


def load_runs(workdirs: Mapping[str, Path], title: str) -> Study:
    """Return finished runs, each as a row.

    Args:
      workdirs: by label.
      title: of the report.

    Raises:
      UserError: a directory has no finished run, or its files are not those of a run.
    """
    rows = []
    for label, directory in workdirs.items():
        run = load_run(label, Path(directory))
        if not run.result:
            raise UserError(
                f"no finished run in {directory}: expected its {workdir.RESULT_FILE}; run its "
                "command again until it ends"
            )
        rows.append(Row(label, (run,), table2.find_published(run.config, run.result)))
    return Study(title, None, tuple(rows))


def load_study(directory: Path) -> Study:
    """Return a study, with the runs of a row together.

    Args:
      directory: with a `study.json` of `title`, `baseline` and `runs`; each run has its `name`,
        `row`, `workdir` (relative to the directory) and `published`.

    Raises:
      UserError: there is no study, or a file of it or of its runs has the wrong content.
    """
    path = directory / STUDY_FILE
    content = atomic_files.read_json(path)
    if content is None:
        raise UserError(f"no study in {directory}: expected a {STUDY_FILE} there")
    try:
        title, baseline = str(content["title"]), content["baseline"]
        places = [(str(r["row"]), str(r["name"]), str(r["workdir"])) for r in content["runs"]]
        published_values = {str(r["row"]): _published(r) for r in content["runs"] if r["published"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a study ({error!r}): expected title, baseline, and runs with name, "
            "row, workdir and published"
        ) from None
    finished_runs: dict[str, list[Run]] = {}
    unfinished_runs = []
    for label, name, place in places:
        run = load_run(name, directory / place)
        if run.result:
            finished_runs.setdefault(label, []).append(run)
        else:
            unfinished_runs.append((label, run))
    rows = tuple(
        Row(
            label,
            tuple(runs),
            published_values.get(label) or table2.find_published(runs[0].config, runs[0].result),
        )
        for label, runs in finished_runs.items()
    )
    return Study(title, baseline, rows, tuple(unfinished_runs))


def _published(run: Mapping[str, Any]) -> table2.Published:
    """Return the published value that a run of `study.json` is compared with, and its source."""
    return table2.Published(float(run["published"]), str(run["source"]))


def load_run(name: str, directory: Path) -> Run:
    """Return a run, finished or not, with whatever files it has.

    Raises:
      UserError: a file has the wrong content.
    """
    directory = reachable(directory, "the directory of a run")
    result = _read_object(directory / workdir.RESULT_FILE, _REQUIRED) or {}
    config = {}
    if (directory / workdir.CONFIG_FILE).exists():
        config = config_lib.flatten(workdir.load_config(directory))
    records = [
        record
        for record in atomic_files.read_json_lines(directory / metric_logger.METRICS_FILE)
        if isinstance(record, dict) and isinstance(record.get("step"), int)
    ]
    # Validation records have a step and no epoch: the length of the run in both gives it.
    epochs_per_step = result["epochs"] / max(result["steps"], 1) if result else 0.0
    val = [r | {"epoch": r["step"] * epochs_per_step} for r in records if r.get("kind") == "val"]
    return Run(
        name=name,
        directory=directory,
        result=result,
        config=config,
        train=[r for r in records if r.get("kind") == "train" and "epoch" in r],
        val=val,
        certificate=_read_object(directory / workdir.TEACHER_FILE, {"sha256": str}),
        probe=_read_object(directory / PROBE_FILE, {"step": int, "confusion": dict}),
    )


def _read_object(path: Path, types: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the object of a JSON file; None if there is no file.

    Args:
      path: of the file.
      types: names of fields to the types that they may have.

    Raises:
      UserError: the file holds no object, or a field is missing or has another type.
    """
    content = atomic_files.read_json(path)
    if content is None:
        return None
    fields = content if isinstance(content, dict) else {}
    faults = [
        name
        for name, kind in types.items()
        if name not in fields or not isinstance(fields[name], kind)
    ]
    faults += [name for name in _NUMBERS if not isinstance(fields.get(name, 0), _NUMBER_OR_NONE)]
    if faults:
        raise UserError(
            f"{path} is not what a run writes there, its {', '.join(faults)} is missing or of "
            "another kind: remove it, and make it anew"
        )
    return dict(content)
