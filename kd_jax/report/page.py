"""Finished runs as one self-contained page: a table, figures, and where every number comes from.

    python -m kd_jax.report --out=report.html teacher=runs/t distilled=runs/d scratch=runs/s
    python -m kd_jax.report --out=report.html --study=DIR [--csv=FILE]

Reads what runs leave behind (docs/report.md), so it needs no accelerator and no JAX. The page has
no script and fetches nothing; it follows the reader's light or dark mode. Which rows are compared,
the configs decide: those that differ in one field. A study's unfinished runs are listed as such.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from kd_jax.report import html, probe_figures, records, result_table, sections, statistics
from kd_jax.report.html import escape
from kd_jax.report.records import Row, Run, Study
from kd_jax.runtime import atomic_files, text_tables
from kd_jax.training import workdir
from kd_jax.training.metric_logger import METRICS_FILE

_NAMES = 2  # columns of the table that are names


def write(workdirs: Mapping[str, Path], out: Path, title: str) -> str:
    """Write the page of some runs to `out`, and return their table as Markdown.

    Raises:
      UserError: a directory holds no finished run, or its files are not those of a run.
    """
    return write_study(records.of_runs(workdirs, title), out)


def write_study(study: Study, out: Path, csv: Path | None = None) -> str:
    """Write the page of a study to `out`, and its runs to `csv`; return its table as Markdown."""
    atomic_files.write_whole(out, to_html(study, out.parent).encode())
    if csv:
        atomic_files.write_whole(csv, result_table.to_csv(study).encode())
    parts = [text_tables.markdown(result_table.rows(study), names=_NAMES)]
    parts += [f"unfinished: {label}, {_progress(run)}" for label, run in study.unfinished]
    return "\n".join(parts)


def to_html(study: Study, base: Path) -> str:
    """Return the page; its links to the runs' files are relative to `base`."""
    drawn = [
        sections.accuracy(study),
        *sections.compared(study),
        sections.from_scratch(study),
        sections.all_rows(study),
        *probe_figures.sections(study),
    ]
    parts = [_lead(study), _results(study, base), _over_seeds(study)]
    parts += [html.section(s) for s in drawn if s]
    parts += [_unfinished(study, base), _sources(study, base)]
    return html.render(study.title, parts)


def _lead(study: Study) -> str:
    """Say in a sentence or two what came out."""
    if not study.rows:
        return "<p>No run is finished yet.</p>"
    reached = {row.label: f"{row.mean('test_top1'):.2f}" for row in study.rows}
    high = max(reached.values(), key=float)
    best = [label for label, own in reached.items() if own == high]
    verb = "is" if len(best) == 1 else "are"
    sentences = [f"Most accurate on test {verb} {' and '.join(best)}, with {high} %."]
    if len(study.rows) == 1:
        sentences = [f"{best[0]} is right on {high} % of the test images."]
    measures = ("kl_to_teacher", "agreement")
    followers = [row for row in study.rows if all(row.mean(m) is not None for m in measures)]
    if followers and len(study.rows) > 1:
        nearest = min(followers, key=lambda row: row.mean("kl_to_teacher") or 0.0)
        sentences.append(
            f"Nearest to its teacher is {nearest.label}: {nearest.mean('kl_to_teacher'):.3f} nats "
            f"from it, and it agrees with it on {nearest.mean('agreement'):.2f} % of the images."
        )
    return f"<p>{html.prose(' '.join(sentences))}</p>"


def _results(study: Study, base: Path) -> str:
    """Return the table, each row with its files."""
    if not study.rows:
        return ""
    header, *lines = result_table.rows(study)
    first = header.index(result_table.HEADLINE)  # what stands before it is told under the label
    rows = [["", *map(escape, header[first:])]]
    for row, line in zip(study.rows, lines, strict=True):
        places = "<br>".join(_link(run, workdir.RESULT_FILE, base) for run in row.runs)
        seeds = f", {len(row.runs)} seeds" if len(row.runs) > 1 else ""
        about = f'<div class="small">{escape(line[1])}{seeds}<br>{places}</div>'
        rows.append([escape(line[0]) + about, *map(_number, line[first:])])
    note = (
        "All of the test split, each image counted once, at the last step (or the best on "
        "validation, where a run has patience). ECE: expected calibration error."
    )
    if any(len(row.runs) > 1 for row in study.rows):
        note += " Of several seeds the mean, and below it the lowest and the highest."
    table = html.table(rows, 1, "results")
    return f'<section><h2>Results</h2>{table}<p class="small">{escape(note)}</p></section>'


def _over_seeds(study: Study) -> str:
    """Return means with their confidence intervals, and differences to the baseline by seed."""
    if all(len(row.runs) < 2 for row in study.rows):
        return ""
    rows = [statistics.HEADER]
    by_seed = {row.label: _top1_by_seed(row) for row in study.rows}
    for row in study.rows:
        measured = [statistics.measures(run.result) for run in row.runs]
        intervals = {
            name: statistics.interval([own for m in measured if (own := m[name]) is not None])
            for name in statistics.MEASURES
        }
        difference = None
        if row.label != study.baseline:
            difference = statistics.paired(
                by_seed[row.label], by_seed.get(study.baseline or "", {})
            )
        rows.append(statistics.line(escape(row.label), str(len(row.runs)), intervals, difference))
    note = (
        "Means of n seeds with their 95 % confidence interval (Student's t). Best top-1: at the "
        "step that was best on validation. Against baseline: of the differences between runs of "
        "the same seed."
    )
    table = html.table(rows, 1)
    return f'<section><h2>Over seeds</h2>{table}<p class="small">{html.prose(note)}</p></section>'


def _top1_by_seed(row: Row) -> dict[int, float]:
    return {run.config["seed"]: run.result["test_top1"] for run in row.runs if run.config}


def _number(cell: str) -> str:
    """Return a cell with the range of the seeds below their mean."""
    mean, bracket, seeds = cell.partition(" (")
    below = f'<div class="small">{escape(seeds.rstrip(")"))}</div>' if bracket else ""
    return escape(mean) + below


def _unfinished(study: Study, base: Path) -> str:
    """List what is not finished."""
    if not study.unfinished:
        return ""
    rows = [["", "run", "so far"]]
    for label, run in study.unfinished:
        place = _link(run, workdir.CONFIG_FILE, base)
        name = f'{escape(run.name)}<div class="small">{place}</div>'
        rows.append([escape(label), name, escape(_progress(run))])
    return f"<section><h2>Unfinished</h2>{html.table(rows, 3)}</section>"


def _progress(run: Run) -> str:
    """Say how far an unfinished run is."""
    if not run.config:
        return "not begun"
    if not run.train:
        return "begun"
    last, planned = run.train[-1], run.config["total_steps"]
    of_steps = f" of {planned}" if planned else ""
    of_epochs = "" if planned else f" of {run.config['total_epochs']:g}"
    return f"at step {last['step']}{of_steps}, epoch {last['epoch']:.2f}{of_epochs}"


def _sources(study: Study, base: Path) -> str:
    """Return every run's files, and every result as it was read."""
    rows = [["", "run", "files"]]
    raw = {}
    for row in study.rows:
        for run in row.runs:
            there = [name for name in _READ if (run.directory / name).exists()]
            links = ", ".join(_link(run, name, base, name) for name in there)
            rows.append([escape(row.label), escape(run.name), links])
            raw[str(run.directory)] = run.result
    if not raw:
        return ""
    text = escape(json.dumps(raw, indent=2))
    return (
        f"<section><h2>Where the numbers come from</h2>{html.table(rows, 3)}"
        f"<details><summary>Every result</summary><pre>{text}</pre></details></section>"
    )


_READ = (
    workdir.RESULT_FILE,
    workdir.CONFIG_FILE,
    METRICS_FILE,
    workdir.TEACHER_FILE,
    records.PROBE_FILE,
)


def _link(run: Run, file: str, base: Path, text: str | None = None) -> str:
    """Return a link to a file of a run, shown by its path unless there is a text."""
    path = Path(os.path.relpath(run.directory / file, base)).as_posix()
    return f'<a href="{escape(urllib.parse.quote(path))}">{escape(text or path)}</a>'
