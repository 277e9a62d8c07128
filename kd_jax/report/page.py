"""The report of finished runs: collect tables, sections and sources, and write the page.

Reads the files of runs (docs/report.md); needs no accelerator and no JAX. `write_study` is the
entry point of `kd_jax.report` and `kd_jax.study`, `write` that of `kd_jax.demo`.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from kd_jax.report import probe_sections, rendering, result_table, results, run_sections, statistics
from kd_jax.report.rendering import Cell, Link, Table
from kd_jax.report.results import Row, Run, Study
from kd_jax.runtime import atomic_files, text_tables
from kd_jax.training import workdir
from kd_jax.training.metric_logger import METRICS_FILE

_NAME_COLUMNS = 2  # of the Markdown table
_SOURCE_FILES = (
    workdir.RESULT_FILE,
    workdir.CONFIG_FILE,
    METRICS_FILE,
    workdir.TEACHER_FILE,
    results.PROBE_FILE,
)


def write(workdirs: Mapping[str, Path], out: Path, title: str) -> str:
    """Write the page of runs to `out`, and return their table as Markdown.

    Args:
      workdirs: by label.
      out: HTML file.
      title: of the page.

    Raises:
      UserError: a directory has no finished run, or its files are not those of a run.
    """
    return write_study(results.load_runs(workdirs, title), out)


def write_study(study: Study, out: Path, csv: Path | None = None) -> str:
    """Write the page of a study to `out` and its runs to `csv`; return its table as Markdown."""
    atomic_files.write_whole(out, to_html(study, out.parent).encode())
    if csv:
        atomic_files.write_whole(csv, result_table.to_csv(study).encode())
    parts = [text_tables.markdown(result_table.rows(study), names=_NAME_COLUMNS)]
    parts += [f"unfinished: {label}, {_progress(run)}" for label, run in study.unfinished]
    return "\n".join(parts)


def to_html(study: Study, base: Path) -> str:
    """Return the page; links to the files of runs are relative to the directory `base`."""
    sections = [
        run_sections.accuracy(study),
        *run_sections.compared(study),
        run_sections.from_scratch(study),
        run_sections.all_rows(study),
        *probe_sections.sections(study),
    ]
    all_results = {str(run.directory): run.result for row in study.rows for run in row.runs}
    return rendering.render_page(
        title=study.title,
        lead=_lead(study),
        results=_results(study, base),
        over_seeds=_over_seeds(study),
        sections=[section for section in sections if section],
        unfinished=_unfinished(study, base),
        sources=_sources(study, base),
        every_result=json.dumps(all_results, indent=2),
    )


def _lead(study: Study) -> str:
    """Return the main result in one or two sentences."""
    if not study.rows:
        return "No run is finished yet."
    top1 = {
        row.label: f"{value:.2f}"
        for row in study.rows
        if (value := row.mean("test_top1")) is not None
    }
    if not top1:
        agreement = ", ".join(
            f"{row.label} on {row.mean('agreement') or 0.0:.2f} %" for row in study.rows
        )
        return f"The test images have no labels; with its teacher agrees {agreement} of them."
    highest = max(top1.values(), key=float)
    best_labels = [label for label, value in top1.items() if value == highest]
    verb = "is" if len(best_labels) == 1 else "are"
    sentences = [f"Most accurate on test {verb} {' and '.join(best_labels)}, with {highest} %."]
    if len(study.rows) == 1 == len(best_labels):
        sentences = [f"{best_labels[0]} is right on {highest} % of the test images."]
    measures = ("kl_to_teacher", "agreement")
    distilled_rows = [row for row in study.rows if all(row.mean(m) is not None for m in measures)]
    if distilled_rows and len(study.rows) > 1:
        row = min(distilled_rows, key=lambda row: row.mean("kl_to_teacher") or 0.0)
        sentences.append(
            f"Nearest to its teacher is {row.label}: {row.mean('kl_to_teacher'):.3f} nats "
            f"from it, and it agrees with it on {row.mean('agreement'):.2f} % of the images."
        )
    return " ".join(sentences)


def _results(study: Study, base: Path) -> Table | None:
    """Return the table of results, each row with links to its files."""
    if not study.rows:
        return None
    header, *lines = result_table.rows(study)
    first_column = header.index(result_table.HEADLINE)  # columns before it stand below the label
    rows = []
    for row, line in zip(study.rows, lines, strict=True):
        seeds = f", {len(row.runs)} seeds" if len(row.runs) > 1 else ""
        links = tuple(_link(run, workdir.RESULT_FILE, base) for run in row.runs)
        label = Cell(line[0], below=(line[1] + seeds, *links))
        rows.append([label, *map(_number_cell, line[first_column:])])
    note = (
        "All of the test split, each image counted once, at the last step (or the best on "
        "validation, where a run has patience). ECE: expected calibration error."
    )
    if any(len(row.runs) > 1 for row in study.rows):
        note += " Of several seeds the mean, and below it the lowest and the highest."
    return Table(["", *header[first_column:]], rows, 1, "results", note)


def _over_seeds(study: Study) -> Table | None:
    """Return means with confidence intervals, and paired differences to the baseline."""
    if all(len(row.runs) < 2 for row in study.rows):
        return None
    rows = []
    top1_by_seed = {row.label: _top1_by_seed(row) for row in study.rows}
    baseline = top1_by_seed.get(study.baseline or "", {})
    for row in study.rows:
        measures = [statistics.measures(run.result) for run in row.runs]
        intervals = {
            name: statistics.interval([v for m in measures if (v := m[name]) is not None])
            for name in statistics.MEASURES
        }
        difference = None
        if row.label != study.baseline:
            difference = statistics.paired(top1_by_seed[row.label], baseline)
        line = statistics.line(row.label, str(len(row.runs)), intervals, difference)
        rows.append([Cell(text) for text in line])
    note = (
        "Means of n seeds with their 95 % confidence interval (Student's t). Best top-1: at the "
        "step that was best on validation. Against baseline: of the differences between runs of "
        "the same seed."
    )
    return Table(statistics.HEADER, rows, 1, note=note)


def _top1_by_seed(row: Row) -> dict[int, float]:
    return {
        run.config["seed"]: top1
        for run in row.runs
        if run.config and (top1 := run.result["test_top1"]) is not None
    }


def _number_cell(text: str) -> Cell:
    """Return a cell of the mean, with the range of the seeds below it."""
    mean, bracket, seeds = text.partition(" (")
    return Cell(mean, below=(seeds.rstrip(")"),) if bracket else ())


def _unfinished(study: Study, base: Path) -> Table | None:
    """Return the unfinished runs and their progress."""
    if not study.unfinished:
        return None
    rows = [
        [
            Cell(label),
            Cell(run.name, below=(_link(run, workdir.CONFIG_FILE, base),)),
            Cell(_progress(run)),
        ]
        for label, run in study.unfinished
    ]
    return Table(["", "run", "so far"], rows, 3)


def _progress(run: Run) -> str:
    """Return how far an unfinished run is."""
    if not run.config:
        return "not begun"
    if not run.train:
        return "begun"
    last_record, total_steps = run.train[-1], run.config["total_steps"]
    of_steps = f" of {total_steps}" if total_steps else ""
    of_epochs = "" if total_steps else f" of {run.config['total_epochs']:g}"
    return f"at step {last_record['step']}{of_steps}, epoch {last_record['epoch']:.2f}{of_epochs}"


def _sources(study: Study, base: Path) -> Table | None:
    """Return the files of all finished runs."""
    rows = []
    for row in study.rows:
        for run in row.runs:
            names = [name for name in _SOURCE_FILES if (run.directory / name).exists()]
            links = tuple(_link(run, name, base, text=name) for name in names)
            rows.append([Cell(row.label), Cell(run.name), Cell(links=links)])
    return Table(["", "run", "files"], rows, 3) if rows else None


def _link(run: Run, file: str, base: Path, text: str = "") -> Link:
    """Return a link to a file of a run; its text is the path, unless another is given."""
    path = Path(os.path.relpath(run.directory / file, base)).as_posix()
    return Link(urllib.parse.quote(path), text or path)
