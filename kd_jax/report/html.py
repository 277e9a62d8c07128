"""One self-contained HTML page: no script, nothing fetched; for a phone, and for the dark."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Sequence

from kd_jax.report import drawing

escape = html.escape


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure, or anything else that has a caption.

    Attributes:
      content: SVG or HTML, with whatever came from files escaped.
      caption, title: text.
      kind: `broad` takes a line of its own, `full` all of that line.
    """

    content: str
    caption: str
    title: str = ""
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title, text: as people read them; they are escaped here.
      legend: labels of the lines of all panels, where they do not stand at the lines.
    """

    title: str
    text: str
    panels: tuple[Panel, ...]
    legend: tuple[str, ...] = ()


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.8rem 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { max-width: 46rem; margin: .3rem 0 .8rem; }
a { color: var(--c1); }
.small, figcaption { font-size: .82rem; color: var(--muted); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; vertical-align: top; }
th { font-size: .82rem; font-weight: 600; color: var(--muted); }
.left { text-align: left; }
.results td:first-child { font-weight: 600; }
.results .small { font-weight: 400; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .2rem 0 .8rem; }
.legend i { display: inline-block; width: 1.4rem; margin-right: .4rem; vertical-align: .25em;
  border-top: 3px solid; }
.legend .dashed { border-top-style: dashed; }
.panels { display: grid; gap: 1.6rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.panel { margin: 0; min-width: 0; max-width: 32rem; }
.panel.broad { grid-column: 1 / -1; max-width: 46rem; }
.panel.full { grid-column: 1 / -1; max-width: none; }
.panel > img { margin: 0 0 .5rem; }
.panel svg { display: block; width: 100%; height: auto; fill: currentColor; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.cards { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.card { border: 1px solid var(--rule); border-radius: .6rem; padding: .8rem; min-width: 0; }
.images { display: flex; justify-content: space-between; gap: .4rem; text-align: center; }
.images div { flex: 1; min-width: 0; font-size: .82rem; line-height: 1.25; }
img { display: block; width: 100%; max-width: 5rem; margin: 0 auto .25rem; border-radius: .25rem;
  image-rendering: pixelated; }
.says { margin: .7rem 0 0; font-size: .82rem; }
.bar { display: grid; grid-template-columns: 6.5rem 1fr 3.7rem; gap: .4rem; align-items: center; }
.bar .inside { font-weight: 700; }
.bar span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar i { display: block; height: .6rem; background: var(--c1); border-radius: 2px; }
.student .bar i { background: var(--c2); }
.bar b { font-weight: 400; white-space: nowrap; text-align: right;
  font-variant-numeric: tabular-nums; }
details { margin: 1rem 0; } summary { cursor: pointer; }
@media (max-width: 40rem) { th, td { padding: .35rem .4rem; } }
pre { overflow-x: auto; font-size: .78rem; }
"""


def _colours(dark: bool) -> str:
    """Return the variables of one mode."""
    own = {"--paper": ("#ffffff", "#15181c"), "--ink": ("#16191d", "#e9ecef")}
    own |= {"--rule": ("#d9dee3", "#343a41"), **drawing.PALETTE}
    return "".join(f"{name}: {pair[dark]}; " for name, pair in own.items())


def render(title: str, parts: Sequence[str]) -> str:
    """Return the page.

    Args:
      title: text.
      parts: HTML, in their order.
    """
    style = (
        f":root {{ color-scheme: light dark; {_colours(False)}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_colours(True)}}} }}{_STYLE}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def section(part: Section) -> str:
    """Return a section's HTML."""
    shown = "\n".join(_panel(panel) for panel in part.panels)
    text = f"<p>{prose(part.text)}</p>\n" if part.text else ""
    if part.legend:
        keys = "".join(_key(number, label) for number, label in enumerate(part.legend))
        text += f'<div class="legend">{keys}</div>\n'
    return (
        f"<section>\n<h2>{prose(part.title)}</h2>\n{text}"
        f'<div class="panels">\n{shown}\n</div>\n</section>'
    )


def prose(text: str) -> str:
    """Return text as HTML whose lines do not break between a number and its unit."""
    return escape(re.sub(r"(?<=\d) (?=%|nats)|(?<==) |(?<=\bT) (?==)", "\N{NO-BREAK SPACE}", text))


def _key(number: int, label: str) -> str:
    """Return how the legend shows a line, see `figures.lines`."""
    colours = [name for name in drawing.PALETTE if name != "--muted"]
    kind = "dashed" if number >= len(colours) else "whole"
    colour = f"var({colours[number % len(colours)]})"
    return f'<span><i class="{kind}" style="color: {colour}"></i>{escape(label)}</span>'


def _panel(panel: Panel) -> str:
    title = f"<h3>{escape(panel.title)}</h3>" if panel.title else ""
    return (
        f'<figure class="panel {panel.kind}">{title}{panel.content}'
        f"<figcaption>{prose(panel.caption)}</figcaption></figure>"
    )


def table(rows: Sequence[Sequence[str]], names: int, kind: str = "") -> str:
    """Return a table in a box that scrolls sideways by itself.

    Args:
      rows: of HTML cells, the header first.
      names: how many columns, from the left, are names; the others are set to the right.
      kind: class of the table.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        left = ' class="left"'
        inner = "".join(
            f"<{tag}{left if i < names else ''}>{cell}</{tag}>" for i, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    body = "\n".join(line(row, "td") for row in rows[1:])
    return (
        f'<div class="wide"><table class="{kind}"><thead>{line(rows[0], "th")}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )
