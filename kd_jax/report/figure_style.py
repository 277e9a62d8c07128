"""What all figures share: colours, plain axes, and SVG for a page.

Text is black, which SVG leaves out as its default, so it takes the ink of the page. All other
colours become variables of the page (`PALETTE`). A figure therefore follows the reader's light or
dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape

# (light, dark), by the variable of the page. A test measures that each is legible as small text on
# the page, and that colour-blind readers can tell the lines' colours apart.
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
MOST_LINES = 2 * len(SERIES)  # of a figure: each colour solid, then dashed
SIZE = (4.8, 3.1)  # inches: as wide as a phone, so that text keeps its size there
FONT_PT = 10
_DECADES_IN_PARTS = 2.5  # of a logarithmic axis, at most
LINE_GAP = 0.075  # between the labels of lines, as a fraction of the axes' height


def set_y_limits(
    axes: Any, heights: Sequence[float], percent: bool, from_zero: bool = True
) -> None:
    """Set the limits of the y axis; it is logarithmic if positive values span a factor of 30.

    Args:
      axes: empty.
      heights: all values that will be drawn.
      percent: the values end at 100, and the axis is never logarithmic.
      from_zero: start at 0, unless that leaves more than half of the axis empty.
    """
    low, high = min(heights), max(heights)
    if low > 0 and high > 30 * low and not percent:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        use_plain_log_ticks(axes.yaxis)
        return
    margin = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
    bottom = 0.0 if from_zero and 0 <= low < 0.5 * high else low - margin
    top = min(high + margin, 100.0) if percent else high + margin
    axes.set_ylim(bottom, max(top, bottom + 1e-6))


def use_plain_log_ticks(axis: Any) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each decade, without powers of ten.

    Of many decades at powers of ten alone, as many as there is room for. Its limits must be set.
    """
    from matplotlib import ticker

    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high < 10**_DECADES_IN_PARTS * low else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda x, _: engineering(x))


def engineering(value: float) -> str:
    """Return a number to three digits with its unit prefix, such as `2.3 M`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def axes_fraction(axes: Any, x: float, y: float) -> tuple[float, float]:
    """Return the position of a point in the axes, in [0, 1] each way; the limits must be set."""
    position = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    return float(position[0]), float(position[1])


def set_y_title(axes: Any, text: str) -> None:
    """Write the quantity of the y axis above it, so that it need not be read sideways."""
    axes.set_title(text, fontsize=FONT_PT, loc="left", color=MUTED)


def hide_frame(axes: Any) -> None:
    """Hide the frame of the axes except the line at the bottom."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(color=MUTED, length=3)


@contextmanager
def new_figure(width: float = SIZE[0], height: float = SIZE[1]) -> Iterator[Any]:
    """Give an empty figure of a width and height in inches; write its SVG inside the context."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: small, and in the reader's font
        "svg.hashsalt": "kd_jax",  # the same identifiers each time
        "font.family": "DejaVu Sans",
        "font.size": FONT_PT,
        "text.parse_math": False,  # a dollar in a label is a dollar
    }
    with matplotlib.rc_context(settings):
        yield Figure(figsize=(width, height), layout="constrained")


@contextmanager
def new_axes(width: float = SIZE[0], height: float = SIZE[1]) -> Iterator[tuple[Any, Any]]:
    """Give a `new_figure` and its only axes."""
    with new_figure(width, height) as figure:
        axes = figure.subplots()
        hide_frame(axes)
        yield figure, axes


_ATTRIBUTES = re.compile(r'\b(?:d|x|y|x1|x2|y1|y2|transform|points|width|height)="[^"]*"')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")


def to_svg(figure: Any, label: str) -> Markup:
    """Return a figure as an SVG element; `label` describes it to readers who cannot see it.

    Matplotlib has escaped the text inside, so this is the one place of the report that makes
    `Markup`.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # A style element inside an SVG would apply to the whole page, whose own style covers figures.
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in each figure of the page
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = _ATTRIBUTES.sub(lambda attribute: _LONG_NUMBER.sub(_round, attribute[0]), text)
    for name, (light, _) in PALETTE.items():
        text = text.replace(light, f"var({name})")
    text = re.sub(r"\n\s*", "\n", text)
    tag = f'<svg role="img" aria-label="{escape(label)}" '
    return Markup(text.replace("<svg ", tag, 1).strip())


def _round(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}"
