"""What all figures have in common: colours, axes without ornament, and SVG for a page.

Text is black, which matplotlib leaves unsaid, so it takes the page's ink; the other colours are the
page's variables (`PALETTE`). So a figure follows the reader's light or dark mode.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# (light, dark), by the variable of the page. Each is legible as small text on the page, and the
# lines' colours can be told apart by the colour-blind too: a test measures both.
PALETTE = {
    "--c1": ("#1257d6", "#4f8fff"),
    "--c2": ("#b9550c", "#ff7f3f"),
    "--c3": ("#14603a", "#63eaa8"),
    "--c4": ("#74148f", "#f0a0e8"),
    "--c5": ("#2a2d31", "#f1f3f5"),
    "--muted": ("#68707a", "#9aa4af"),
}
INK, MUTED = "#000000", PALETTE["--muted"][0]
SERIES = tuple(light for name, (light, _) in PALETTE.items() if name != "--muted")
MOST_LINES = 2 * len(SERIES)  # in one figure: each colour whole, and dashed
SIZE = (4.8, 3.1)  # inches: as wide as a phone, so that text keeps its size there
FONT_PT = 10
LINE_GAP = 0.075  # between labels, of the height of the axes


def limit(axes: Any, heights: Sequence[float], percent: bool, from_zero: bool = True) -> None:
    """Set the limits upwards: from 0 where that wastes no room, logarithmic where values span.

    Args:
      axes: not yet drawn in.
      heights: all that will be drawn.
      percent: the values end at 100, and are never drawn logarithmically.
      from_zero: False leaves 0 out.
    """
    low, high = min(heights), max(heights)
    if low > 0 and high > 30 * low and not percent:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        plain_log(axes.yaxis)
        return
    margin = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
    bottom = 0.0 if from_zero and 0 <= low < 0.5 * high else low - margin
    top = min(high + margin, 100.0) if percent else high + margin
    axes.set_ylim(bottom, max(top, bottom + 1e-6))


def plain_log(axis: Any) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of every decade, in plain numbers."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda x, _: engineering(x))


def engineering(value: float) -> str:
    """Return a number as `2.3 M`, to three digits."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def fraction(axes: Any, x: float, y: float) -> tuple[float, float]:
    """Return where a point lies in the axes, whose limits are set, in [0, 1] each way."""
    where = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    return float(where[0]), float(where[1])


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights in [0, 1] apart until none is nearer to another than `gap`, order kept.

    Where all of them do not fit, they fill [0, 1] evenly.
    """
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    lowest = 0.0
    for i in order:
        placed[i] = lowest = max(heights[i], lowest)
        lowest += gap
    highest = 1.0
    for i in reversed(order):
        placed[i] = highest = min(placed[i], highest)
        highest -= gap
    return placed


# Of the axes of a figure of `SIZE`, roughly: a letter's width, a line's height, half a point.
_LETTER, _LINE, _POINT = 0.0185, 0.068, 0.018
_Box = tuple[float, float, float, float]  # left, bottom, right, top


def places(
    labels: Sequence[str], points: Sequence[tuple[float, float]]
) -> list[tuple[float, float, str]]:
    """Return where each label stands: beside its point, and on nothing else as far as possible.

    Args:
      labels: empty ones take no room.
      points: in [0, 1] of the axes each way.

    Returns:
      x and y in [0, 1], and which side of the label x is, `left`, `right` or `center`.
    """
    taken: list[_Box] = [
        (x - _POINT, y - 1.4 * _POINT, x + _POINT, y + 1.4 * _POINT) for x, y in points
    ]
    found = []
    for label, (x, y) in zip(labels, points, strict=True):
        width = _LETTER * len(label)
        candidates = []
        for up in (0, _LINE, -_LINE, 2 * _LINE, -2 * _LINE):
            aside = 1.4 * _POINT if up == 0 else 0
            candidates += [(x + aside, y + up, "left"), (x - aside, y + up, "right")]
            candidates += [(x, y + up, "center")] if up else []

        # Of equals the nearest, which stands first.
        best = min(candidates, key=lambda place: _in_the_way(_box(place, width), taken))
        found.append(best)
        taken += [_box(best, width)] if label else []
    return found


def _box(place: tuple[float, float, str], width: float) -> _Box:
    x, y, side = place
    left = x - {"left": 0.0, "center": width / 2, "right": width}[side]
    return left, y - _LINE / 2, left + width, y + _LINE / 2


def _in_the_way(box: _Box, taken: Sequence[_Box]) -> float:
    """Return how much of a box is outside of the axes, or on others; most of all if any is."""
    outside = max(-box[0], 0) + max(box[2] - 1, 0) + max(-box[1], 0) + max(box[3] - 1, 0)
    shared = [_overlap(box, other) for other in taken]
    return 10 * outside + sum(shared) + 0.1 * sum(area > 0 for area in shared)


def _overlap(one: _Box, other: _Box) -> float:
    """Return the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def head(axes: Any, text: str) -> None:
    """Write above the axes what they measure, where other figures turn it on its side."""
    axes.set_title(text, fontsize=FONT_PT, loc="left", color=MUTED)


def strip(axes: Any) -> None:
    """Leave of the frame the line at the bottom."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(color=MUTED, length=3)


@contextmanager
def blank(width: float = SIZE[0], height: float = SIZE[1]) -> Iterator[Any]:
    """Give an empty figure, `width` and `height` in inches; it must be saved inside."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: small, and in the reader's font
        "svg.hashsalt": "kd_jax",  # the same names of parts each time
        "font.family": "DejaVu Sans",
        "font.size": FONT_PT,
        "text.parse_math": False,  # a dollar in a label is a dollar
    }
    with matplotlib.rc_context(settings):
        yield Figure(figsize=(width, height), layout="constrained")


@contextmanager
def one_axes(width: float = SIZE[0], height: float = SIZE[1]) -> Iterator[tuple[Any, Any]]:
    """Give a figure, as `blank`, and its only axes."""
    with blank(width, height) as figure:
        axes = figure.subplots()
        strip(axes)
        yield figure, axes


_ATTRIBUTES = re.compile(r'\b(?:d|x|y|x1|x2|y1|y2|transform|points|width|height)="[^"]*"')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")


def svg(figure: Any, label: str) -> str:
    """Return a figure as an element of a page, told to those who cannot see it by `label`."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The style is of everything in a page, which sets it for its figures itself.
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # named alike in every figure of the page
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    round_off: Callable[[re.Match[str]], str] = lambda m: f"{float(m[0]):.1f}"  # noqa: E731
    text = _ATTRIBUTES.sub(lambda m: _LONG_NUMBER.sub(round_off, m[0]), text)
    for name, (light, _) in PALETTE.items():
        text = text.replace(light, f"var({name})")
    text = re.sub(r"\n\s*", "\n", text)
    tag = f'<svg role="img" aria-label="{html.escape(label)}" '
    return text.replace("<svg ", tag, 1).strip()
