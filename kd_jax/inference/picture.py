"""Draw images beside the classes that networks find in them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.inference.classifier import Choice
from kd_jax.report import figure_style

MOST = 40  # images of one picture
_ROW, _IMAGE, _BARS = 1.55, 1.7, 3.0  # inches: height of a row, widths of its parts
_LONGEST, _LONGEST_FILE = 28, 22  # letters of the name of a class, of a file
_TOP, _LETTERS_HIGH = 0.45, 0.3  # inches above the rows, and of a file's name
_DPI = 150
_THUMBNAIL = 256  # pixels


class Row(NamedTuple):
    """An image of the picture.

    Attributes:
      name: of its file.
      pixels: uint8 `[h, w, 3]`, small.
      answers: who -> its choices, the most probable first.
    """

    name: str
    pixels: np.ndarray
    answers: Mapping[str, Sequence[Choice]]


def thumbnail(image: Any) -> np.ndarray:
    """Return an RGB image of Pillow as it is drawn: uint8 `[h, w, 3]`, of its own proportions."""
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(small)


def draw(rows: Sequence[Row]) -> bytes:
    """Return a PNG: a row for each image, and in it a bar for each class of each network.

    Args:
      rows: at least one, all with answers of the same networks.
    """
    titles = list(rows[0].answers)
    count = max(len(choices) for row in rows for choices in row.answers.values())
    height = max(_ROW, 0.22 * count + 0.5)
    width = _IMAGE + _BARS * len(titles)
    with figure_style.new_figure(width, height * len(rows) + _TOP) as figure:
        grid = figure.add_gridspec(
            len(rows), 1 + len(titles), width_ratios=(_IMAGE, *(_BARS,) * len(titles))
        )
        for number, row in enumerate(rows):
            axes = figure.add_subplot(grid[number, 0])
            axes.imshow(row.pixels)
            axes.set_axis_off()
            axes.set_title(_short(row.name, _LONGEST_FILE), fontsize=8)
            for column, (who, choices) in enumerate(row.answers.items(), 1):
                axes = figure.add_subplot(grid[number, column])
                _bars(axes, choices, count, figure_style.SERIES[column - 1])
                if number == 0 and len(titles) > 1:
                    axes.set_title(who, fontsize=figure_style.FONT_PT, loc="left")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": "kd_jax"})
    return file.getvalue()


def _bars(axes: Any, choices: Sequence[Choice], count: int, colour: str) -> None:
    """Draw a bar for each choice, the first on top, its name and its percentage beside it."""
    places = range(len(choices))
    values = [100 * choice.probability for choice in choices]
    axes.barh(places, values, height=0.62, color=colour)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 1.5, place, f"{value:.1f} %", va="center", fontsize=8)
    axes.set_yticks(places, [_short(choice.name) for choice in choices], fontsize=8)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(0, 122)  # room for the percentage beside a full bar
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(figure_style.MUTED)


def _short(name: str, longest: int = _LONGEST) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
