"""The kinds of figures of a report, as SVG.

No figure has a title: the page says above it what one sees. Lines are labelled where they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.report import drawing

FEW_GROUPS = 12  # whose heatmap is small
_LONGEST_AT_A_LINE = 16  # characters: longer ones would leave the lines no room


class Line(NamedTuple):
    """A line and its label, or several that differ in the seed: then their mean, and their band.

    Attributes:
      label: empty where it is told elsewhere; the line's last value then stands alone.
      seeds: x and y of each.
      reference: a height to compare with, dotted in the line's colour and in brackets at its end.
    """

    label: str
    seeds: Sequence[Sequence[tuple[float, float]]]
    reference: float | None = None


class Point(NamedTuple):
    """A point and its label; `hollow` for what others measured."""

    label: str
    x: float
    y: float
    hollow: bool = False


def lines(
    series: Sequence[Line], what: str, x_label: str, form: str = "{:.1f}", percent: bool = False
) -> str:
    """Return lines over x, each named at its end with its last value.

    Args:
      series: at most `drawing.MOST_LINES`.
      what: the quantity and its unit, above the axis.
      x_label: below it.
      form: of the last value.
      percent: the quantity ends at 100.
    """
    with drawing.one_axes() as (figure, axes):
        common = [_common(line.seeds) if line.seeds else [] for line in series]
        means = [[(x, sum(ys) / len(ys)) for x, ys in points] for points in common]
        known = [mean for mean in means if mean]
        heights = [y for mean in known for _, y in mean]
        heights += [line.reference for line in series if line.reference is not None]
        drawing.limit(axes, heights, percent)
        first, last = min(mean[0][0] for mean in known), max(mean[-1][0] for mean in known)
        axes.set_xlim(first, last if last > first else first + 1)
        ends = []
        for number, (line, mean) in enumerate(zip(series, means, strict=True)):
            if not mean:
                continue
            colour = drawing.SERIES[number % len(drawing.SERIES)]
            dash = "--" if number >= len(drawing.SERIES) else "-"
            x, y = zip(*mean, strict=True)
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.8, clip_on=False)
            if len(mean) == 1:
                axes.plot(x, y, color=colour, marker="o", clip_on=False)
            if len(line.seeds) > 1:
                low, high = zip(*((min(ys), max(ys)) for _, ys in common[number]), strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            said = form.format(y[-1])
            if line.reference is not None:
                axes.axhline(line.reference, color=colour, linewidth=1.1, linestyle=(0, (1, 2)))
                said += f" ({line.reference:.2f})"
            ends.append((x[-1], y[-1], f"{line.label}: {said}" if line.label else said, colour))
        _name_ends(axes, ends)
        axes.set_xlabel(x_label)
        if last >= 2:  # epochs, and not shares
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        drawing.head(axes, what)
        axes.grid(axis="y", color=drawing.MUTED, alpha=0.25, linewidth=0.6)
        return drawing.svg(figure, f"{what}, over {x_label}")


def scatter(points: Sequence[Point], what: str, x_label: str, log_x: bool = False) -> str:
    """Return labelled points; `what` is the quantity upwards, in percent."""
    with drawing.one_axes() as (figure, axes):
        if log_x:
            axes.set_xscale("log")
        drawing.limit(axes, [point.y for point in points], percent=True, from_zero=False)
        xs = [point.x for point in points]
        margin = 0.08 * (max(xs) - min(xs)) or 1.0
        axes.set_xlim(*(
            (min(xs) / 1.6, max(xs) * 1.6) if log_x else (min(xs) - margin, max(xs) + margin)
        ))  # fmt: skip
        if log_x:
            drawing.plain_log(axes.xaxis)
        at = [drawing.fraction(axes, point.x, point.y) for point in points]
        for point in points:
            colour = drawing.MUTED if point.hollow else drawing.SERIES[0]
            face = "none" if point.hollow else colour
            axes.plot(point.x, point.y, "o", markersize=6, color=colour, markerfacecolor=face)
        places = drawing.places([point.label for point in points], at)
        for point, (x, y, side) in zip(points, places, strict=True):
            if not point.label:
                continue
            axes.text(
                x,
                y,
                point.label,
                transform=axes.transAxes,
                color=drawing.MUTED if point.hollow else drawing.INK,
                fontsize=drawing.FONT_PT - 1,
                ha=side,
                va="center",
            )
        axes.set_xlabel(x_label)
        drawing.head(axes, what)
        axes.grid(color=drawing.MUTED, alpha=0.25, linewidth=0.6)
        return drawing.svg(figure, f"{what}, over {x_label}")


def dots(rows: Sequence[tuple[str, Sequence[float], float | None]], what: str) -> str:
    """Return a row of dots each: the seeds, their mean as a bar, and a hollow diamond to compare.

    Args:
      rows: label, values in percent, and what is published, if anything.
      what: the quantity.
    """
    with drawing.one_axes(height=0.75 + 0.27 * len(rows), width=5.4) as (figure, axes):
        values = [v for _, own, other in rows for v in (*own, *([] if other is None else [other]))]
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 1.0
        axes.set_xlim(max(low - margin, 0), min(high + margin, 100.5))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for y, (_, own, other) in enumerate(rows):
            mean = sum(own) / len(own)
            axes.axhline(y, color=drawing.MUTED, alpha=0.25, linewidth=0.6, zorder=0)
            axes.plot(own, [y] * len(own), "o", color=drawing.SERIES[0], markersize=6, alpha=0.8)
            if len(own) > 1:
                axes.plot([mean, mean], [y - 0.3, y + 0.3], color=drawing.SERIES[0], linewidth=2)
            if other is not None:
                axes.plot(
                    other, y, "D", color=drawing.SERIES[1], markerfacecolor="none", markersize=6
                )
            axes.text(
                1.02, y, f"{mean:.2f}", transform=axes.get_yaxis_transform(), va="center"
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(what)
        return drawing.svg(figure, what)


def bars(columns: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], what: str) -> str:
    """Return columns of horizontal bars side by side: probabilities of the same classes.

    Args:
      columns: a heading and a probability a class each.
      names: of the classes, from the top.
      what: the quantity, for readers who see no figure.
    """
    with drawing.blank(height=0.55 + 0.25 * len(names), width=5.6) as figure:
        every = figure.subplots(1, len(columns), sharey=True)
        for number, (axes, (heading, probs)) in enumerate(zip(every, columns, strict=True)):
            drawing.strip(axes)
            axes.barh(range(len(names)), probs, color=drawing.SERIES[0], height=0.7)
            for y, prob in enumerate(probs):
                axes.text(prob + 0.03, y, _percent(prob), va="center", fontsize=drawing.FONT_PT - 2)
            axes.set_xlim(0, 1.3)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_xticks([])
            axes.tick_params(axis="y", length=0, labelleft=number == 0)
            axes.spines["bottom"].set_visible(False)
            axes.set_yticks(range(len(names)), list(names))
            axes.set_title(heading, fontsize=drawing.FONT_PT, loc="left", color=drawing.INK)
        return drawing.svg(figure, what)


def heatmap(counts: np.ndarray, names: Sequence[str], what: str) -> str:
    """Return what each group was taken for, in percent of the group; the right ones as numbers.

    The shade is that of the mistakes: the share of the right answers is far larger, and would hide
    them.

    Args:
      counts: int `[groups, groups]`, rows are what the images show.
      names: of the groups.
      what: for readers who see no figure.
    """
    from matplotlib import patches

    shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = shares * (1 - np.eye(len(shares)))
    most = max(mistakes.max(), 1e-9)
    width, height = (6.6, 6.2) if len(names) > FEW_GROUPS else (4.8, 4.6)
    with drawing.one_axes(width, height) as (figure, axes):
        for (i, j), share in np.ndenumerate(mistakes):
            if share > 0:
                alpha = round(0.08 + 0.92 * float(share / most), 2)
                cell = patches.Rectangle(
                    (j - 0.5, i - 0.5), 1, 1, color=drawing.SERIES[1], alpha=alpha, linewidth=0
                )
                axes.add_patch(cell)
        for i, share in enumerate(np.diag(shares)):
            axes.text(i, i, f"{share:.0f}", ha="center", va="center", fontsize=drawing.FONT_PT - 2)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_yticks(range(len(names)), list(names))
        turned = max(map(len, names)) > 3
        axes.set_xticks(range(len(names)), list(names), rotation=90 if turned else 0)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=drawing.MUTED, alpha=0.3, linewidth=0.5)
        axes.tick_params(which="minor", length=0)
        return drawing.svg(figure, what)


def legend_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels if they are too long to stand at their lines; nothing if they fit there."""
    return tuple(labels) if max(map(len, labels), default=0) > _LONGEST_AT_A_LINE else ()


def left_out(labels: Sequence[str]) -> str:
    """Say which lines cannot be drawn, of more than there are colours."""
    rest = labels[drawing.MOST_LINES :]
    return f" Not drawn, for want of colours: {', '.join(rest)}." if rest else ""


def _percent(probability: float) -> str:
    percent = 100 * probability
    if percent >= 1:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def _common(seeds: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, list[float]]]:
    """Return x and every seed's y, where all seeds have a point."""
    known = [dict(seed) for seed in seeds]
    return [(x, [y[x] for y in known]) for x in known[0] if all(x in y for y in known)]


def _name_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's label beside its end, moved where it would lie on another's."""
    at = [drawing.fraction(axes, x, y) for x, y, _, _ in ends]
    placed = drawing.spread([y for _, y in at], drawing.LINE_GAP)
    for (x, y), height, (_, _, text, colour) in zip(at, placed, ends, strict=True):
        if abs(height - y) > 0.01 or x < 0.99:
            axes.plot(
                [x + 0.005, 1.02], [y, height], transform=axes.transAxes, color=colour,
                linewidth=0.6, alpha=0.6, clip_on=False,
            )  # fmt: skip
        axes.text(1.03, height, text, transform=axes.transAxes, color=colour, va="center")
