"""Finished runs as one self-contained page: a table, and curves over the epochs.

    python -m kd_jax.report --out=report.html teacher=runs/t distilled=runs/d scratch=runs/s

Reads `result.json` and `metrics.jsonl` alone, so it needs no accelerator and no JAX. The page has
no script and fetches nothing; it follows the reader's light or dark mode.
"""

from __future__ import annotations

import html
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax import files, tables
from kd_jax.errors import UserError, fail

_COLUMNS = (
    ("top-1 %", "test_top1", "{:.2f}"),
    ("agreement %", "agreement", "{:.2f}"),
    ("KL to teacher", "kl_to_teacher", "{:.3f}"),
    ("params", "params", "{:,}"),
    ("multiply-adds", "madds", "{:,}"),
    ("images/s", "images_per_second", "{:,.0f}"),
)
_FIGURES = (
    ("top1", "Top-1 on validation (%)"),
    ("agreement", "Agreement with the teacher on validation (%)"),
    ("kl_to_teacher", "KL(teacher || student) on validation (nats)"),
)
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Paul Tol's bright


def collect(workdirs: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return, for every label, the run's `result` and its `val` records.

    Raises:
      UserError: a directory holds no finished run.
    """
    runs = {}
    for label, directory in workdirs.items():
        result = files.read_json(Path(directory) / "result.json")
        if result is None:
            raise UserError(
                f"no finished run in {directory}: expected its result.json; run its command again "
                "until it ends"
            )
        records = files.read_json_lines(Path(directory) / "metrics.jsonl")
        per_epoch = result["epochs"] / result["steps"]
        val = [
            {**record, "epoch": record["step"] * per_epoch}
            for record in records
            if record["kind"] == "val"
        ]
        runs[label] = {"result": result, "val": val}
    return runs


def rows(runs: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """Return the table: a header, then a row a run; what a run does not have is a dash."""
    header = ["", "network", *(title for title, _, _ in _COLUMNS)]
    table = [header]
    for label, run in runs.items():
        result = run["result"]
        cells = [
            form.format(result[field]) if result.get(field) is not None else "-"
            for _, field, form in _COLUMNS
        ]
        table.append([label, result["student"], *cells])
    return table


def curve(runs: Mapping[str, dict[str, Any]], field: str, title: str) -> str | None:
    """Return a figure of one validation measure over the epochs as SVG; None if no run has it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "kd_jax", "font.family": "sans-serif"}
    ):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
        for (label, run), colour in zip(runs.items(), _COLOURS * len(runs), strict=False):
            points = [(r["epoch"], r[field]) for r in run["val"] if r.get(field) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=".")
        drawn = bool(axes.lines)
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize="medium", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if drawn:
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    # Black becomes the page's text colour, so the figure can be read in dark mode too.
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    svg = svg.replace("<svg ", '<svg role="img" style="fill: currentColor" ', 1)
    return svg if drawn else None


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
.wide { overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #8886; text-align: right; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
figure { margin: 1.5rem 0; }
svg { width: 100%; height: auto; max-width: 44rem; }
"""


def to_html(runs: Mapping[str, dict[str, Any]], title: str) -> str:
    """Return the page."""
    table = rows(runs)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table[1:]
    )
    drawn = [curve(runs, field, name) for field, name in _FIGURES]
    figures = "".join(f"<figure>{svg}</figure>" for svg in drawn if svg)
    details = html.escape(json.dumps({k: v["result"] for k, v in runs.items()}, indent=2))
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"{figures}<details><summary>Every result</summary><pre>{details}</pre></details>"
        "</body></html>\n"
    )


def write(workdirs: Mapping[str, Path], out: Path, title: str) -> str:
    """Write the page of some runs to `out`, and return their table as Markdown."""
    runs = collect(workdirs)
    files.write_whole(out, to_html(runs, title).encode())
    return tables.markdown(rows(runs), names=2)


def main() -> None:
    """Write a report of the runs named on the command line."""
    import argparse

    parser = argparse.ArgumentParser(description="Write a report of finished runs.")
    parser.error = fail  # type: ignore[method-assign]  # one sentence, without the usage
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--title", default="kd_jax")
    parser.add_argument("runs", nargs="+", metavar="LABEL=WORKDIR")
    options = parser.parse_args()
    try:
        pairs = [text.partition("=") for text in options.runs]
        if bad := [label for label, equals, _ in pairs if not equals]:
            raise UserError(f"{bad[0]!r} is not LABEL=WORKDIR, such as distilled=runs/distilled")
        workdirs = {label: Path(directory) for label, _, directory in pairs}
        print(write(workdirs, options.out, options.title))
        print(f"report: {options.out}", file=sys.stderr)
    except UserError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
