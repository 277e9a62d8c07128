"""Tables as text: every row is as wide as the others, whatever letters its cells have."""

import unicodedata

import pytest

from kd_jax.runtime import text_tables

ROWS = [["image", "class", "%"], ["a.png", "ant", "99.10"], ["", "fish and chips", "0.90"]]


def test_a_percentage_of_few_images_says_of_how_many():
    assert text_tables.of_few(3) == " (of 3 images)"
    assert text_tables.of_few(1) == " (of 1 image)"
    assert [text_tables.of_few(count) for count in (200, 10_000)] == ["", ""]


def test_a_table_is_markdown_with_its_columns_aligned():
    assert text_tables.markdown(ROWS, names=2).splitlines() == [
        "| image | class          |     % |",
        "| ----- | -------------- | ----: |",
        "| a.png | ant            | 99.10 |",
        "|       | fish and chips |  0.90 |",
    ]


@pytest.mark.parametrize(("text", "width"), [
    ("", 0), ("ant", 3), ("魚", 2), ("\N{FULLWIDTH LATIN CAPITAL LETTER A}b", 3), ("über", 4),
    (unicodedata.normalize("NFD", "über"), 4),
])  # fmt: skip
def test_letters_are_as_wide_as_a_terminal_shows_them(text, width):
    assert text_tables.width(text) == width
    line = text_tables.line([text, "1"], [6, 3], [True, False])
    assert line == f"| {text}{' ' * (6 - width)} |   1 |"
