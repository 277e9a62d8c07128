"""What runs have left behind, read for the report: no accelerator and no JAX is needed for it.

A `Row` is what one line of the table shows: one run, or several that differ in their seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax import config as config_lib
from kd_jax.report import table2
from kd_jax.report.statistics import STUDY_FILE
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.training import metric_logger, workdir

PROBE_FILE = "probe.json"
_NEEDED = {"student": str, "dataset": str, "test_top1": (int, float), "steps": int,
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
      result: what `result.json` holds; empty while the run is unfinished.
      config: flat, `field.path` to value; empty where there is no `config.json`.
      train, val: records of `metrics.jsonl`, each with its `epoch`.
      probe: what `kd_jax.probe` wrote into the workdir; None if it did not.
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
    """Finished runs that differ in nothing but the seed, at least one."""

    label: str
    runs: tuple[Run, ...]
    published: table2.Published | None

    @property
    def first(self) -> Run:
        """The run that stands for what all of them have in common."""
        return self.runs[0]

    def values(self, field: str) -> list[float]:
        """Return a field of every run's result; of those that have it."""
        found = [run.result.get(field) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, field: str) -> float | None:
        """Return the mean of a field over the seeds; None if no run has it."""
        values = self.values(field)
        return sum(values) / len(values) if values else None


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that a report is about.

    Attributes:
      baseline: label of the row that the others are compared with, if there is one.
      rows: with at least one finished run each.
      unfinished: every other run, after the label of its row.
    """

    title: str
    baseline: str | None
    rows: tuple[Row, ...]
    unfinished: tuple[tuple[str, Run], ...] = ()


def of_runs(workdirs: Mapping[str, Path], title: str) -> Study:
    """Return finished runs, a row each.

    Args:
      workdirs: by label.
      title: of the report.

    Raises:
      UserError: a directory holds no finished run, or its files are not those of a run.
    """
    rows = []
    for label, directory in workdirs.items():
        run = read_run(label, Path(directory))
        if not run.result:
            raise UserError(
                f"no finished run in {directory}: expected its {workdir.RESULT_FILE}; run its "
                "command again until it ends"
            )
        rows.append(Row(label, (run,), table2.find(run.config, run.result)))
    return Study(title, None, tuple(rows))


def of_study(directory: Path) -> Study:
    """Return a study's runs, those of one row together.

    Args:
      directory: with a `study.json` of `title`, `baseline` and `spec`, each run with its `name`,
        `row`, `workdir` (relative to the directory) and `published`.

    Raises:
      UserError: there is no study, or it or one of its runs is not what it should be.
    """
    path = directory / STUDY_FILE
    content = atomic_files.read_json(path)
    if content is None:
        raise UserError(f"no study in {directory}: expected a {STUDY_FILE} there")
    try:
        title, baseline = str(content["title"]), content["baseline"]
        named = [(str(r["row"]), str(r["name"]), str(r["workdir"])) for r in content["runs"]]
        published = {str(r["row"]): _published(r) for r in content["runs"] if r["published"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a study ({error!r}): expected title, baseline, and runs with name, "
            "row, workdir and published"
        ) from None
    grouped: dict[str, list[Run]] = {}
    unfinished = []
    for label, name, place in named:
        run = read_run(name, directory / place)
        if run.result:
            grouped.setdefault(label, []).append(run)
        else:
            unfinished.append((label, run))
    rows = tuple(
        Row(
            label,
            tuple(runs),
            published.get(label) or table2.find(runs[0].config, runs[0].result),
        )
        for label, runs in grouped.items()
    )
    return Study(title, baseline, rows, tuple(unfinished))


def _published(run: Mapping[str, Any]) -> table2.Published:
    """Return what a run of `study.json` is compared with: a number, and its `source`."""
    return table2.Published(float(run["published"]), str(run["source"]))


def read_run(name: str, directory: Path) -> Run:
    """Return what there is of a run, finished or not.

    Raises:
      UserError: a file is not what it should be.
    """
    directory = reachable(directory, "the directory of a run")
    result = _object(directory / workdir.RESULT_FILE, _NEEDED) or {}
    config = {}
    if (directory / workdir.CONFIG_FILE).exists():
        config = config_lib.flatten(workdir.load_config(directory))
    records = [
        record
        for record in atomic_files.read_json_lines(directory / metric_logger.METRICS_FILE)
        if isinstance(record, dict) and isinstance(record.get("step"), int)
    ]
    # Validations are logged without their epoch: it follows from the run's length in both.
    epochs_a_step = result["epochs"] / max(result["steps"], 1) if result else 0.0
    val = [r | {"epoch": r["step"] * epochs_a_step} for r in records if r.get("kind") == "val"]
    return Run(
        name=name,
        directory=directory,
        result=result,
        config=config,
        train=[r for r in records if r.get("kind") == "train" and "epoch" in r],
        val=val,
        certificate=_object(directory / workdir.TEACHER_FILE, {"sha256": str}),
        probe=_object(directory / PROBE_FILE, {"step": int, "confusion": dict}),
    )


def _object(path: Path, needed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a JSON file's object, or None if it is not there.

    Raises:
      UserError: it is no object, or lacks a field that is needed, or has another kind of value.
    """
    content = atomic_files.read_json(path)
    if content is None:
        return None
    known = content if isinstance(content, dict) else {}
    wrong = [field for field, kind in needed.items() if not isinstance(known.get(field), kind)]
    wrong += [field for field in _NUMBERS if not isinstance(known.get(field, 0), _NUMBER_OR_NONE)]
    if wrong:
        raise UserError(
            f"{path} is not what a run writes there, its {', '.join(wrong)} is missing or of "
            "another kind: remove it, and make it anew"
        )
    return dict(content)
