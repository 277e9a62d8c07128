"""The results of a report as a table for people and as CSV for programs."""

from __future__ import annotations

import csv
import io
from typing import Any

from kd_jax.report.results import Row, Run, Study

HEADLINE = "top-1 %"
# Title, field of `result.json`, number format, and whether it can differ between seeds.
_COLUMNS = (
    (HEADLINE, "test_top1", "{:.2f}", True),
    ("ECE %", "test_ece", "{:.2f}", True),
    ("agreement %", "agreement", "{:.2f}", True),
    ("KL to teacher", "kl_to_teacher", "{:.3f}", True),
    ("params", "params", "{:,}", False),
    ("multiply-adds", "madds", "{:,}", False),
    ("images/s", "images_per_second", "{:,.0f}", False),
)
_MISSING = "-"


def rows(study: Study) -> list[list[str]]:
    """Return a header and then a line per row; a missing value is a dash.

    Of several seeds: the mean, then the lowest and the highest in brackets. The columns for the
    number of seeds and for the published top-1 are left out if no row needs them.
    """
    has_seeds = any(len(row.runs) > 1 for row in study.rows)
    has_published = any(row.published for row in study.rows)
    titles = [title for title, *_ in _COLUMNS]
    header = ["", "network", *(["seeds"] if has_seeds else []), titles[0]]
    table = [[*header, *(["published %"] if has_published else []), *titles[1:]]]
    for row in study.rows:
        cells = [_cell(row, field, number, varies) for _, field, number, varies in _COLUMNS]
        line = [row.label, row.first.result["student"]]
        line += [str(len(row.runs))] if has_seeds else []
        line += cells[:1]
        if has_published:
            line += [f"{row.published.top1:.2f}" if row.published else _MISSING]
        table.append(line + cells[1:])
    return table


def _cell(row: Row, field: str, number_format: str, varies: bool) -> str:
    values = row.values(field)
    if not values:
        return _MISSING
    if not varies:
        return number_format.format(values[0])
    text = number_format.format(sum(values) / len(values))
    low, high = number_format.format(min(values)), number_format.format(max(values))
    return text if low == high else f"{text} ({low} to {high})"


def to_csv(study: Study) -> str:
    """Return CSV with a line per run, finished or not, and all fields of `result.json`.

    Values are as in the file; nested fields have dotted names.
    """
    runs = [(row.label, run, row.published) for row in study.rows for run in row.runs]
    results = [_flat(run.result) for _, run, _ in runs]
    fields = list(dict.fromkeys(field for result in results for field in result))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", "run", "workdir", "finished", "published_top1", *fields])
    for (label, run, published), result in zip(runs, results, strict=True):
        top1 = published.top1 if published else None
        writer.writerow([*_names(label, run), True, top1, *(result.get(f) for f in fields)])
    for label, run in study.unfinished:
        writer.writerow([*_names(label, run), False, None, *(None for _ in fields)])
    return buffer.getvalue()


def _names(label: str, run: Run) -> list[str]:
    return [label, run.name, str(run.directory)]


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Return nested objects as one, with dotted names."""
    fields: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            fields |= {f"{name}.{inner_name}": leaf for inner_name, leaf in _flat(value).items()}
        else:
            fields[name] = value
    return fields
