"""Draw the figure of the README: what `make demo` measures, over three seeds.

    python -m docs.figures.demo

It reads results/demo, which `python -m kd_jax.demo --seed=N` left for N = 0, 1, 2, and writes
docs/figures/demo.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "results" / "demo"
SEEDS = (0, 1, 2)
# Directory, what it is, colour.
PARTS = (
    ("teacher", "teacher, from 1,293 labels", "#68707a"),
    ("without_labels", "student, taught without a label", "#1257d6"),
    ("few_labels", "student, from 64 labels", "#b9550c"),
    ("all_labels", "student, from 1,293 labels", "#68707a"),
)


def accuracies(part: str) -> list[float]:
    """Return the top-1 on test in percent of each seed, of a part of the demo."""
    files = [RUNS / f"{part}-s{seed}" / "result.json" for seed in SEEDS]
    return [json.loads(file.read_text())["test_top1"] for file in files]


def draw(path: Path) -> None:
    """Write the figure as SVG, with a dot for each seed and the mean in numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "kd_jax", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.6, 2.35), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for row, (part, _, colour) in enumerate(PARTS):
            values = accuracies(part)
            mean = fmean(values)
            axes.plot([min(values), max(values)], [row, row], color=colour, linewidth=1, alpha=0.5)
            axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.55, markersize=7)
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
            axes.text(100.6, row, f"{mean:.2f} %", color=colour, va="center", weight="bold")
        axes.set_yticks(range(len(PARTS)), [label for _, label, _ in PARTS])
        for tick, (_, _, colour) in zip(axes.get_yticklabels(), PARTS, strict=True):
            tick.set_color(colour)
        axes.set_xticks(range(80, 101, 5))
        axes.set(xlim=(80, 100), ylim=(len(PARTS) - 0.5, -0.5))
        axes.set_xlabel("right of 360 test images, %: a dot a seed, a bar at the mean")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(path, format="svg", metadata=metadata)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
