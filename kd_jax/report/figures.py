"""The kinds of figures of a report, as SVG: lines, scatter, dots, bars and heatmap.

They join the page in `run_sections` (what runs recorded) and `probe_sections` (what the probe
measured). A figure has no title: the page has a heading above it. Lines are labelled at their ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from kd_jax.report import figure_style, label_placement

FEW_GROUPS = 12  # of a heatmap that is drawn small
_LONGEST_LINE_LABEL = 16  # characters: a longer label would leave the lines no room


class Line(NamedTuple):
    """A line and its label. Of several seeds, the line is the mean, with a band around it.

    Attributes:
      label: empty if a legend has it; then only the last value stands at the line's end.
      seeds: x and y of each seed.
      reference: a value to compare with: a dotted line, and a number in brackets at the end.
    """

    label: str
    seeds: Sequence[Sequence[tuple[float, float]]]
    reference: float | None = None


class Point(NamedTuple):
    """A point and its label; `hollow` for values measured by others."""

    label: str
    x: float
    y: float
    hollow: bool = False


def lines(
    series: Sequence[Line],
    quantity: str,
    x_label: str,
    number_format: str = "{:.1f}",
    percent: bool = False,
) -> Markup:
    """Draw lines over x, each with its label and its last value at its end.

    Args:
      series: at most `figure_style.MOST_LINES`.
      quantity: of the y axis, with its unit; written above the axis.
      x_label: written below the x axis.
      number_format: of the last value.
      percent: the y axis ends at 100.
    """
    with figure_style.new_axes() as (figure, axes):
        curves = [_common_points(line.seeds) if line.seeds else [] for line in series]
        means = [[(x, sum(ys) / len(ys)) for x, ys in points] for points in curves]
        drawn_means = [mean for mean in means if mean]
        heights = [y for mean in drawn_means for _, y in mean]
        heights += [line.reference for line in series if line.reference is not None]
        figure_style.set_y_limits(axes, heights, percent)
        first_x = min(mean[0][0] for mean in drawn_means)
        last_x = max(mean[-1][0] for mean in drawn_means)
        axes.set_xlim(first_x, last_x if last_x > first_x else first_x + 1)
        ends = []
        for number, (line, mean) in enumerate(zip(series, means, strict=True)):
            if not mean:
                continue
            colour = figure_style.SERIES[number % len(figure_style.SERIES)]
            dash = "--" if number >= len(figure_style.SERIES) else "-"
            x, y = zip(*mean, strict=True)
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.8, clip_on=False)
            if len(mean) == 1:
                axes.plot(x, y, color=colour, marker="o", clip_on=False)
            if len(line.seeds) > 1:
                low, high = zip(*((min(ys), max(ys)) for _, ys in curves[number]), strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            text = number_format.format(y[-1])
            if line.reference is not None:
                axes.axhline(line.reference, color=colour, linewidth=1.1, linestyle=(0, (1, 2)))
                text += f" ({line.reference:.2f})"
            text = f"{line.label}: {text}" if line.label else text
            ends.append((x[-1], y[-1], text, colour))
        _label_ends(axes, ends)
        axes.set_xlabel(x_label)
        if last_x >= 2:  # epochs; a fraction ends at 1
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        figure_style.set_y_title(axes, quantity)
        axes.grid(axis="y", color=figure_style.MUTED, alpha=0.25, linewidth=0.6)
        return figure_style.to_svg(figure, f"{quantity}, over {x_label}")


def scatter(points: Sequence[Point], quantity: str, x_label: str, log_x: bool = False) -> Markup:
    """Draw labelled points; `quantity` is that of the y axis, in percent."""
    with figure_style.new_axes() as (figure, axes):
        if log_x:
            axes.set_xscale("log")
        figure_style.set_y_limits(
            axes, [point.y for point in points], percent=True, from_zero=False
        )
        xs = [point.x for point in points]
        margin = 0.08 * (max(xs) - min(xs)) or 1.0
        axes.set_xlim(*(
            (min(xs) / 1.6, max(xs) * 1.6) if log_x else (min(xs) - margin, max(xs) + margin)
        ))  # fmt: skip
        if log_x:
            figure_style.use_plain_log_ticks(axes.xaxis)
        positions = [figure_style.axes_fraction(axes, point.x, point.y) for point in points]
        for point in points:
            colour = figure_style.MUTED if point.hollow else figure_style.SERIES[0]
            face = "none" if point.hollow else colour
            axes.plot(point.x, point.y, "o", markersize=6, color=colour, markerfacecolor=face)
        places = label_placement.place_labels([point.label for point in points], positions)
        for point, (x, y, side) in zip(points, places, strict=True):
            if not point.label:
                continue
            axes.text(
                x,
                y,
                point.label,
                transform=axes.transAxes,
                color=figure_style.MUTED if point.hollow else figure_style.INK,
                fontsize=figure_style.FONT_PT - 1,
                ha=side,
                va="center",
            )
        axes.set_xlabel(x_label)
        figure_style.set_y_title(axes, quantity)
        axes.grid(color=figure_style.MUTED, alpha=0.25, linewidth=0.6)
        return figure_style.to_svg(figure, f"{quantity}, over {x_label}")


def dots(rows: Sequence[tuple[str, Sequence[float], float | None]], quantity: str) -> Markup:
    """Draw a line of dots per row: the seeds, their mean as a bar, a diamond to compare with.

    Args:
      rows: label, values of the seeds in percent, and the published value, if there is one.
      quantity: written below the x axis.
    """
    colour, published_colour = figure_style.SERIES[:2]
    with figure_style.new_axes(height=0.75 + 0.27 * len(rows), width=5.4) as (figure, axes):
        drawn_values = [value for _, values, _ in rows for value in values]
        drawn_values += [published for _, _, published in rows if published is not None]
        low, high = min(drawn_values), max(drawn_values)
        margin = 0.06 * (high - low) or 1.0
        axes.set_xlim(max(low - margin, 0), min(high + margin, 100.5))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for y, (_, values, published) in enumerate(rows):
            mean = sum(values) / len(values)
            axes.axhline(y, color=figure_style.MUTED, alpha=0.25, linewidth=0.6, zorder=0)
            axes.plot(values, [y] * len(values), "o", color=colour, markersize=6, alpha=0.8)
            if len(values) > 1:
                axes.plot([mean, mean], [y - 0.3, y + 0.3], color=colour, linewidth=2)
            if published is not None:
                axes.plot(
                    published, y, "D", color=published_colour, markerfacecolor="none", markersize=6
                )
            axes.text(
                1.02, y, f"{mean:.2f}", transform=axes.get_yaxis_transform(), va="center"
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(quantity)
        return figure_style.to_svg(figure, quantity)


def bars(
    columns: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], description: str
) -> Markup:
    """Draw columns of horizontal bars side by side: probabilities of the same classes.

    Args:
      columns: of each, its heading and a probability in [0, 1] per class.
      names: of the classes, from the top.
      description: for readers who cannot see the figure.
    """
    with figure_style.new_figure(height=0.55 + 0.25 * len(names), width=5.6) as figure:
        axes_of_columns = figure.subplots(1, len(columns), sharey=True)
        for number, (axes, column) in enumerate(zip(axes_of_columns, columns, strict=True)):
            heading, probs = column
            figure_style.hide_frame(axes)
            axes.barh(range(len(names)), probs, color=figure_style.SERIES[0], height=0.7)
            for y, prob in enumerate(probs):
                axes.text(
                    prob + 0.03, y, _percent(prob), va="center", fontsize=figure_style.FONT_PT - 2
                )
            axes.set_xlim(0, 1.3)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_xticks([])
            axes.tick_params(axis="y", length=0, labelleft=number == 0)
            axes.spines["bottom"].set_visible(False)
            axes.set_yticks(range(len(names)), list(names))
            axes.set_title(
                heading, fontsize=figure_style.FONT_PT, loc="left", color=figure_style.INK
            )
        return figure_style.to_svg(figure, description)


def heatmap(counts: np.ndarray, names: Sequence[str], description: str) -> Markup:
    """Draw a confusion matrix in percent of each row; the diagonal as numbers.

    Only the mistakes are shaded: on a scale with the diagonal, which is far larger, they would
    not be visible.

    Args:
      counts: int `[groups, groups]`; rows are true groups, columns predicted groups.
      names: of the groups.
      description: for readers who cannot see the figure.
    """
    from matplotlib import patches

    shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = shares * (1 - np.eye(len(shares)))
    highest = max(mistakes.max(), 1e-9)
    width, height = (6.6, 6.2) if len(names) > FEW_GROUPS else (4.8, 4.6)
    with figure_style.new_axes(width, height) as (figure, axes):
        for (i, j), share in np.ndenumerate(mistakes):
            if share > 0:
                alpha = round(0.08 + 0.92 * float(share / highest), 2)
                cell = patches.Rectangle(
                    (j - 0.5, i - 0.5), 1, 1, color=figure_style.SERIES[1], alpha=alpha, linewidth=0
                )
                axes.add_patch(cell)
        for i, share in enumerate(np.diag(shares)):
            axes.text(
                i, i, f"{share:.0f}", ha="center", va="center", fontsize=figure_style.FONT_PT - 2
            )
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_yticks(range(len(names)), list(names))
        is_rotated = max(map(len, names)) > 3
        axes.set_xticks(range(len(names)), list(names), rotation=90 if is_rotated else 0)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=figure_style.MUTED, alpha=0.3, linewidth=0.5)
        axes.tick_params(which="minor", length=0)
        return figure_style.to_svg(figure, description)


def legend_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels if they are too long to stand at their lines; otherwise nothing."""
    return tuple(labels) if max(map(len, labels), default=0) > _LONGEST_LINE_LABEL else ()


def omission_note(labels: Sequence[str]) -> str:
    """Return a sentence that names the lines beyond `figure_style.MOST_LINES`; empty if none."""
    rest = labels[figure_style.MOST_LINES :]
    return f" Not drawn, for want of colours: {', '.join(rest)}." if rest else ""


def _percent(probability: float) -> str:
    percent = 100 * probability
    if percent >= 1:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def _common_points(
    seeds: Sequence[Sequence[tuple[float, float]]],
) -> list[tuple[float, list[float]]]:
    """Return the x that all seeds have, each with the y of every seed."""
    heights = [dict(seed) for seed in seeds]
    return [(x, [y[x] for y in heights]) for x in heights[0] if all(x in y for y in heights)]


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's label beside its end, moved up or down where labels would overlap.

    Args:
      axes: with limits.
      ends: x and y of the line's end, label, colour.
    """
    positions = [figure_style.axes_fraction(axes, x, y) for x, y, _, _ in ends]
    heights = label_placement.spread([y for _, y in positions], figure_style.LINE_GAP)
    for (x, y), height, (_, _, text, colour) in zip(positions, heights, ends, strict=True):
        if abs(height - y) > 0.01 or x < 0.99:
            axes.plot(
                [x + 0.005, 1.02], [y, height], transform=axes.transAxes, color=colour,
                linewidth=0.6, alpha=0.6, clip_on=False,
            )  # fmt: skip
        axes.text(1.03, height, text, transform=axes.transAxes, color=colour, va="center")
