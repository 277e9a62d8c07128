"""What is shown of another library's error."""

import pytest

from kd_jax.runtime.errors import in_short

LONG = RuntimeError("begin " + "x" * 500 + " cause")


def test_a_short_error_is_one_line():
    assert in_short(RuntimeError(" two\n  lines\t")) == "two lines"


def test_an_error_without_words_is_named():
    assert in_short(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert in_short(ValueError(" \n")) == "ValueError"


@pytest.mark.parametrize("longest", [40, 160, 200])
@pytest.mark.parametrize("ending", [0, 6, 20])
def test_a_long_error_is_cut_to_the_length(longest, ending):
    text = in_short(LONG, longest, ending)
    assert len(text) == longest
    assert text.startswith("begin ")
    assert text.endswith(" cause" if ending else "...")


def test_an_error_of_the_very_length_is_whole():
    assert in_short(RuntimeError("y" * 160)) == "y" * 160
    assert in_short(RuntimeError("y" * 161)) == "y" * 157 + "..."
