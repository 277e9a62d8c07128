"""Every decimal number of a section that names its committed files is one of them.

Of RESULTS.md these are all; on a page of docs/ the text up to the next heading.
"""

import json
import math
import re

import pytest

from helpers import ROOT
from kd_jax.report import table2

PAGE = ROOT / "RESULTS.md"
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
# `<!-- numbers: results/rates/**/*.json, published -->` holds until the next such comment.
SOURCE = re.compile(r"<!-- numbers: (.*?) -->")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?![\w.]*\d)")
NOT_MEASURED = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)  # commands, code, links


def numbers_in(content):
    """Yield every number in a JSON value."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from numbers_in(item)
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        yield float(content)


def numbers_of(source):
    """Return the numbers that a source has, and fail where it names no file."""
    if source == "published":
        return [row.top1 for row in (*table2.TABLE_1, *table2.TABLE_2)]
    paths = sorted(ROOT.glob(source))
    assert paths, f"a page names {source}, and there is no such file"
    return [number for path in paths for number in numbers_in(json.loads(path.read_text()))]


def sections():
    """Yield the sources and the text of each part of the page."""
    _, *parts = SOURCE.split(NOT_MEASURED.sub("", PAGE.read_text()))
    for names, text in zip(parts[::2], parts[1::2], strict=True):
        yield pytest.param(names, text, id=names)
    for page in DOCUMENTS:
        _, *parts = SOURCE.split(NOT_MEASURED.sub("", page.read_text()))
        for names, text in zip(parts[::2], parts[1::2], strict=True):
            yield pytest.param(names, text.partition("\n#")[0], id=f"{page.name}: {names}")


@pytest.mark.parametrize(("names", "text"), sections())
def test_numbers_are_of_committed_files(names, text):
    known = [number for name in names.split(", ") for number in numbers_of(name)]
    for written in NUMBER.findall(text):
        half = 0.5 * 10.0 ** -len(written.partition(".")[2])
        assert any(
            math.isclose(float(written), n, rel_tol=0, abs_tol=half * 1.001) for n in known
        ), f"{written} is in no file of {names}"


def test_numbers_are_below_a_comment_that_names_their_files():
    head = SOURCE.split(NOT_MEASURED.sub("", PAGE.read_text()))[0]
    assert not NUMBER.findall(head)


def test_a_number_that_no_file_has_is_noticed():
    with pytest.raises(AssertionError, match="is in no file"):
        test_numbers_are_of_committed_files("published", "top-1 of 99.99 %")
