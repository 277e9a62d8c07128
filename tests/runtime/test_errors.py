"""What is shown of another library's error, and of flags that are no numbers."""

import pytest
from absl import flags

from kd_jax.runtime import errors
from kd_jax.runtime.errors import UserError, in_short

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


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_flag_that_is_not_finite_is_refused(value):
    values = flags.FlagValues()
    flags.DEFINE_float("size", 1.0, "", lower_bound=0.0, flag_values=values)
    values(["command", "--size=3"])
    errors._check_finite(values)
    values["size"].value = float(value)
    with pytest.raises(UserError, match=f"--size={value}: expected a number that is finite"):
        errors._check_finite(values)
