"""A study as one table: for every row the mean over its seeds, and how sure that is.

    python -m kd_jax.summary studies/table2

Reads `study.json` and the runs' `result.json` alone, so it needs no accelerator and no JAX, and may
be asked while the study goes on. Writes `table.md`, `table.csv` and `statistics.json` beside them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.runtime import atomic_files, text_tables
from kd_jax.runtime.errors import UserError

STUDY_FILE = "study.json"
MEASURES = {
    "test_top1": "top-1 %",  # of the last step
    "best_test_top1": "best top-1 %",  # of the step that was best on validation
    "agreement": "agreement %",
    "test_ece": "ECE %",
}
HEADER = ["", "n", *MEASURES.values(), "top-1 against baseline"]
_CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of some numbers, and half the width of its 95 % confidence interval.

    The interval is Student's, for the mean of a normal distribution of unknown variance; one number
    has none.

    Returns:
      `n`, `mean` (None if there is no number), `half_width` (None below two).
    """
    from scipy import stats

    n = len(values)
    mean = math.fsum(values) / n if n else None
    if mean is None or n < 2:
        return {"n": n, "mean": mean, "half_width": None}
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1))
    return {"n": n, "mean": mean, "half_width": quantile * math.sqrt(variance / n)}


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """Return the interval of the differences to a baseline, over the seeds that both have."""
    return interval([value - baseline[seed] for seed, value in values.items() if seed in baseline])


def read(root: Path) -> dict[str, Any]:
    """Return what is written to `statistics.json`: of every row what its finished runs measured.

    Args:
      root: directory of a study.

    Returns:
      `title`, `baseline` and `rows`; a row has its `spec` (directories of the finished ones),
      the names of those `missing`, what is `published`, and of every measure `by_seed`, `n`,
      `mean`, `half_width` and the paired `difference` to the baseline.

    Raises:
      UserError: there is no study, or it is not what `kd_jax.study` writes.
    """
    study = atomic_files.read_json(root / STUDY_FILE)
    if study is None:
        raise UserError(f"no study in {root}: expected its {STUDY_FILE}")
    try:
        return _summarise(root, study)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{root / STUDY_FILE} or a result of its runs is not what kd_jax.study writes "
            f"({error!r}): begin the study again in a new directory"
        ) from None


def _summarise(root: Path, study: Any) -> dict[str, Any]:
    results = {
        run["name"]: result
        for run in study["runs"]
        if (result := atomic_files.read_json(root / run["workdir"] / "result.json")) is not None
    }
    by_row: dict[str, list[dict[str, Any]]] = {}
    for run in study["runs"]:
        by_row.setdefault(run["row"], []).append(run)
    baseline = _by_seed(by_row[study["baseline"]], results)
    rows = []
    for label, runs in by_row.items():
        own = _by_seed(runs, results)
        rows.append(
            {
                "row": label,
                "runs": [run["workdir"] for run in runs if run["name"] in results],
                "missing": [run["name"] for run in runs if run["name"] not in results],
                "published": None if (top1 := runs[0]["published"]) is None else float(top1),
                "source": runs[0]["source"],
                **{
                    name: {
                        **interval(list(own[name].values())),
                        "by_seed": own[name],
                        "difference": paired(own[name], baseline[name]),
                    }
                    for name in MEASURES
                },
            }
        )
    return {"title": study["title"], "baseline": study["baseline"], "rows": rows}


def _by_seed(
    runs: Sequence[dict[str, Any]], results: Mapping[str, dict[str, Any]]
) -> dict[str, dict[int, float]]:
    """Return, for every measure, what the finished runs of a row have of it."""
    measured = {
        run["seed"]: measures(results[run["name"]]) for run in runs if run["name"] in results
    }
    return {
        name: {s: value for s, own in measured.items() if (value := own[name]) is not None}
        for name in MEASURES
    }


def measures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what a run's `result.json` has of every measure."""
    best = result.get("best")
    return {
        "test_top1": result.get("test_top1"),
        "best_test_top1": best.get("test_top1") if isinstance(best, dict) else None,
        "agreement": result.get("agreement"),
        "test_ece": result.get("test_ece"),
    }


def lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the table for people, header first; what there is not is a dash."""
    any_published = any(row["published"] is not None for row in summary["rows"])
    rows = [HEADER + (["published top-1 %"] if any_published else [])]
    for row in summary["rows"]:
        is_baseline = row["row"] == summary["baseline"]
        difference = None if is_baseline else row["test_top1"]["difference"]
        cells = line(row["row"], _count(row), row, difference)
        if any_published:
            cells.append("-" if row["published"] is None else f"{row['published']:.2f}")
        rows.append(cells)
    return rows


def line(
    label: str, count: str, intervals: Mapping[str, Any], difference: Mapping[str, Any] | None
) -> list[str]:
    """Return a row under `HEADER`; the baseline has no difference to itself."""
    means = (said(intervals[name], "{:.2f}") for name in MEASURES)
    return [label, count, *means, "baseline" if difference is None else said(difference, "{:+.2f}")]


def _count(row: Mapping[str, Any]) -> str:
    finished, missing = len(row["runs"]), len(row["missing"])
    return f"{finished} of {finished + missing}" if missing else f"{finished}"


def said(measured: Mapping[str, Any], form: str) -> str:
    """Return an interval as people read it; a dash where there is no number."""
    if measured["mean"] is None:
        return "-"
    text, half = form.format(measured["mean"]), measured["half_width"]
    return text if half is None else f"{text} ± {half:.2f}"


def as_csv(summary: Mapping[str, Any]) -> str:
    """Return the table for programs: every number unrounded, and the runs that it is of."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("n", "mean", "half_width")
    writer.writerow(
        ["row"]
        + [f"{name}_{part}" for name in MEASURES for part in parts]
        + [f"{name}_difference_{part}" for name in MEASURES for part in parts]
        + ["baseline", "published_top1", "source", "runs", "missing"]
    )
    for row in summary["rows"]:
        writer.writerow(
            [row["row"]]
            + [row[name][part] for name in MEASURES for part in parts]
            + [row[name]["difference"][part] for name in MEASURES for part in parts]
            + [summary["baseline"], row["published"], row["source"]]
            + [" ".join(row["runs"]), " ".join(row["missing"])]
        )
    return out.getvalue()


def write(root: Path) -> str:
    """Write `statistics.json`, `table.csv` and `table.md`, and return the last as text.

    Raises:
      UserError: there is no study, or they cannot be written.
    """
    summary = read(root)
    table = text_tables.markdown(lines(summary))
    atomic_files.write_json(root / "summary.json", summary)
    atomic_files.write_whole(root / "table.csv", as_csv(summary).encode())
    atomic_files.write_whole(root / "table.md", f"# {summary['title']}\n\n{table}\n".encode())
    return table
