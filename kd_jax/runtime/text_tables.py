"""Numbers and tables as text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_FEW = 200  # images, of which each is half a point or more


def of_few(count: int) -> str:
    """Return ` (of 3 images)` to put behind a percentage; nothing where there are many."""
    return f" (of {count} image{'s' if count != 1 else ''})" if count < _FEW else ""


def markdown(rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Return a table as aligned Markdown.

    Args:
      rows: the header first.
      names: how many columns, from the left, are names; the others are set to the right.
    """
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    is_name = [i < names for i in range(len(widths))]
    head, *others = rows
    return "\n".join([top(head, widths, is_name), *(line(row, widths, is_name) for row in others)])


def top(head: Sequence[str], widths: Sequence[int], is_name: Sequence[bool]) -> str:
    """Return the header of a Markdown table and the rule below it, see `line`."""
    columns = zip(widths, is_name, strict=True)
    rule = ["-" * size if left else "-" * (size - 1) + ":" for size, left in columns]
    return f"{line(head, widths, is_name)}\n{line(rule, widths, is_name)}"


def line(row: Sequence[str], widths: Sequence[int], is_name: Sequence[bool]) -> str:
    """Return a row of a Markdown table whose rows are not all known yet.

    Args:
      row: its cells.
      widths: of the columns, see `width`.
      is_name: whether a column is set to the left; the others are set to the right.
    """
    cells = []
    for cell, columns, left in zip(row, widths, is_name, strict=True):
        padding = " " * (columns - width(cell))
        cells.append(cell + padding if left else padding + cell)
    return "| " + " | ".join(cells) + " |"


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese letters take two, accents none.

    Source: Unicode Standard Annex 11.
    """
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )
