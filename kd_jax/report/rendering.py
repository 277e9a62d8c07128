"""The HTML of a report: templates filled with plain data, every value escaped by Jinja.

The page is one file: it has no script, fetches nothing, fits a phone, and has a dark mode.
`figure_style.to_svg` is the only place that makes markup (`Markup`); anything else is a value.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from kd_jax.report import figure_style

# (light, dark), by the variable of the page.
_COLOURS = {
    "--paper": ("#ffffff", "#15181c"),
    "--ink": ("#16191d", "#e9ecef"),
    "--rule": ("#d9dee3", "#343a41"),
    **figure_style.PALETTE,
}
# The spaces of "5 %", "2 nats" and "T = 5", where a line must not be broken.
_UNBREAKABLE_SPACE = re.compile(r"(?<=\d) (?=%|nats)|(?<==) |(?<=\bT) (?==)")


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of a mixture card: its data URI, and the text below it."""

    uri: str
    text: str


@dataclasses.dataclass(frozen=True)
class Bar:
    """A predicted class: its name, its probability in percent, whether the mixture contains it."""

    name: str
    percent: float
    in_mixture: bool


@dataclasses.dataclass(frozen=True)
class Card:
    """A mixture of two images, and what networks predict for it.

    Attributes:
      images: both images and their mixture.
      predictions: `teacher` and `student`, each with its most probable classes.
    """

    images: tuple[Image, ...]
    predictions: tuple[tuple[str, tuple[Bar, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure, or cards, with a caption.

    Attributes:
      caption, title: text.
      figure: SVG as `Markup`; a plain string would be escaped.
      image: data URI of an image above the figure.
      cards: shown side by side.
      kind: `broad` takes a line of the page, `full` the whole width of that line.
    """

    caption: str
    title: str = ""
    figure: str = ""
    image: str = ""
    cards: tuple[Card, ...] = ()
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with figures.

    Attributes:
      title, text: text.
      panels: in reading order.
      legend: labels of the lines of all panels, if they do not stand at the lines.
    """

    title: str
    text: str
    panels: tuple[Panel, ...]
    legend: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Link:
    """A link of a table."""

    href: str
    text: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: text, links separated by commas, and smaller lines below."""

    text: str = ""
    links: tuple[Link, ...] = ()
    below: tuple[str | Link, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
      header: a title for each column.
      rows: cells, as many as the header has titles.
      name_columns: how many columns, from the left, are names; the others are aligned right.
      kind: CSS class of the table.
      note: text below the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    name_columns: int
    kind: str = ""
    note: str = ""


def render_page(**values: Any) -> str:
    """Return the page: `templates/page.html` filled with values, which are escaped there.

    Raises:
      jinja2.UndefinedError: a value of the template is missing.
    """
    return _environment().get_template("page.html").render(colours=_COLOURS, **values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kd_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"prose": _prose, "legend_keys": _legend_keys}
    return environment


def _prose(text: str) -> str:
    """Return text that is never broken between a number and its unit; it is not escaped here."""
    return _UNBREAKABLE_SPACE.sub("\N{NO-BREAK SPACE}", str(text))


def _legend_keys(labels: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Return label, colour variable and dash of each line, in the order of `figures.lines`."""
    colours = [name for name in figure_style.PALETTE if name != "--muted"]
    return [
        (label, colours[number % len(colours)], number >= len(colours))
        for number, label in enumerate(labels)
    ]
