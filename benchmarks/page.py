"""The page on which measured tables stand, between markers."""

from __future__ import annotations

import re
from pathlib import Path

from kd_jax.runtime.errors import UserError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def write(name: str, text: str, kind: str = "") -> None:
    """Put a table where its markers are on the page.

    Args:
      name: of the table.
      text: what stands between the markers from now on.
      kind: class of processors that it is of. Every class has a table of its own; one that is new
        comes after those of the other classes.

    Raises:
      UserError: the page has no table of this name.
    """
    PAGE.write_text(_replaced(PAGE.read_text(), name, text, kind))


def _replaced(page: str, name: str, text: str, kind: str) -> str:
    of_class = r"( \w+)?" if kind else "()"
    pattern = rf"<!-- {name}{of_class}: measured -->\n.*?<!-- {name}(?(1)\1): end -->"
    tables = list(re.finditer(pattern, page, re.DOTALL))
    if not tables:
        raise UserError(
            f"{PAGE.name} has no table {name!r}: expected the lines '<!-- {name}: measured -->' "
            f"and '<!-- {name}: end -->'"
        )
    title = f"{name} {kind}".strip()
    table = f"<!-- {title}: measured -->\n{text}\n<!-- {title}: end -->"
    for found in tables:
        if (found[1] or "").strip() == kind:
            return page[: found.start()] + table + page[found.end() :]
    end = tables[-1].end()
    return f"{page[:end]}\n\n{table}{page[end:]}"
