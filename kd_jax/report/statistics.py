"""Statistics of a study: for each row the mean over its seeds, with a confidence interval.

Reads only `study.json` and the `result.json` of its runs, so it needs no accelerator and no JAX and
works while the study is running. `write` is what `python -m kd_jax.summary STUDY` calls.
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

STUDY_FILE, SUMMARY_FILE = "study.json", "summary.json"
MEASURES = {
    "test_top1": "top-1 %",  # at the last step
    "best_test_top1": "best top-1 %",  # at the step that was best on validation
    "agreement": "agreement %",
    "test_ece": "ECE %",
}
HEADER = ["", "n", *MEASURES.values(), "top-1 against baseline"]
_CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of numbers and half the width of its 95 % confidence interval.

    The interval is Student's t, for the mean of a normal distribution with unknown variance.

    Returns:
      `n`, `mean` (None without a number), `half_width` (None with fewer than two).
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
    """Return the interval of the differences to a baseline, over the seeds in both mappings."""
    return interval([value - baseline[seed] for seed, value in values.items() if seed in baseline])


def read(root: Path) -> dict[str, Any]:
    """Return the content of `summary.json`: the measures of each row over its finished runs.

    Args:
      root: directory of a study.

    Returns:
      `title`, `baseline` and `rows`. A row has `row` (its label), `runs` (directories of the
      finished ones), `missing` (names of the others), `published`, `source`, and of each measure
      `by_seed`, `n`, `mean`, `half_width` and the paired `difference` to the baseline.

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
    """Return `read`'s result for the content of a `study.json`."""
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
        by_seed = _by_seed(runs, results)
        rows.append(
            {
                "row": label,
                "runs": [run["workdir"] for run in runs if run["name"] in results],
                "missing": [run["name"] for run in runs if run["name"] not in results],
                "published": None if (top1 := runs[0]["published"]) is None else float(top1),
                "source": runs[0]["source"],
                **{
                    name: {
                        **interval(list(by_seed[name].values())),
                        "by_seed": by_seed[name],
                        "difference": paired(by_seed[name], baseline[name]),
                    }
                    for name in MEASURES
                },
            }
        )
    return {"title": study["title"], "baseline": study["baseline"], "rows": rows}


def _by_seed(
    runs: Sequence[dict[str, Any]], results: Mapping[str, dict[str, Any]]
) -> dict[str, dict[int, float]]:
    """Return for each measure its values by seed, of the finished runs that have it.

    Args:
      runs: of a row, as in `study.json`.
      results: contents of `result.json`, by the name of the run.
    """
    by_seed = {
        run["seed"]: measures(results[run["name"]]) for run in runs if run["name"] in results
    }
    return {
        name: {seed: v for seed, values in by_seed.items() if (v := values[name]) is not None}
        for name in MEASURES
    }


def measures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the measures of a run from the content of its `result.json`; None where missing."""
    best_result = result.get("best")
    return {
        "test_top1": result.get("test_top1"),
        "best_test_top1": best_result.get("test_top1") if isinstance(best_result, dict) else None,
        "agreement": result.get("agreement"),
        "test_ece": result.get("test_ece"),
    }


def lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the table for people, the header first; a missing value is a dash."""
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
    """Return a row under `HEADER`; `difference` is None for the baseline itself."""
    means = (in_words(intervals[name], "{:.2f}") for name in MEASURES)
    last_cell = "baseline" if difference is None else in_words(difference, "{:+.2f}")
    return [label, count, *means, last_cell]


def _count(row: Mapping[str, Any]) -> str:
    num_finished, num_missing = len(row["runs"]), len(row["missing"])
    return f"{num_finished} of {num_finished + num_missing}" if num_missing else f"{num_finished}"


def in_words(estimate: Mapping[str, Any], number_format: str) -> str:
    """Return an interval as `41.40 ± 0.25`; a dash if there is no number."""
    if estimate["mean"] is None:
        return "-"
    text, half_width = number_format.format(estimate["mean"]), estimate["half_width"]
    return text if half_width is None else f"{text} ± {half_width:.2f}"


def as_csv(summary: Mapping[str, Any]) -> str:
    """Return the table for programs: all numbers unrounded, with the runs that they come from."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
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
    return buffer.getvalue()


def write(root: Path) -> str:
    """Write `summary.json`, `table.csv` and `table.md`; return the table of the last.

    Raises:
      UserError: there is no study, or they cannot be written.
    """
    summary = read(root)
    table = text_tables.markdown(lines(summary))
    atomic_files.write_json(root / SUMMARY_FILE, summary)
    atomic_files.write_whole(root / "table.csv", as_csv(summary).encode())
    atomic_files.write_whole(root / "table.md", f"# {summary['title']}\n\n{table}\n".encode())
    return table
