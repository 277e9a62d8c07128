"""Whatever a file or a config holds: it is read, or refused with one sentence."""

import contextlib
import json
import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import write_pth
from kd_jax import checks, state_files, weights, workdir
from kd_jax import config as config_lib
from kd_jax.errors import UserError

ARRAYS = {"a.weight": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float32)}
QUICK = settings(max_examples=150, deadline=None, derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_letters, max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


def whole_file(suffix):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"x{suffix}"
        if suffix == ".pth":
            write_pth(path, ARRAYS)
        elif suffix == ".npz":
            np.savez(path, **ARRAYS)
        else:
            safetensors.numpy.save_file(ARRAYS, path)
        return path.read_bytes()


def read_or_refuse(read, content, name):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(content)
        with contextlib.suppress(UserError):  # any other error fails the test
            read(path)


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_files_of_weights_with_changed_bytes(suffix):
    whole = whole_file(suffix)

    @QUICK
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=9),
           st.integers(0, len(whole)))  # fmt: skip
    def fuzz(changes, length):
        content = bytearray(whole)
        for position, value in changes:
            content[position] = value
        read_or_refuse(state_files.read, bytes(content[:length]), f"x{suffix}")
        read_or_refuse(state_files.read, bytes(content), f"x{suffix}")

    fuzz()


@QUICK
@given(st.binary(max_size=200), st.sampled_from([".pth", ".npz", ".safetensors"]))
def test_files_of_weights_that_are_anything(content, suffix):
    read_or_refuse(state_files.read, content, f"x{suffix}")


@QUICK
@given(JSON)
def test_cards_that_are_anything(content):
    text = json.dumps(content).encode()
    read_or_refuse(lambda path: weights.load_card(path.parent), text, weights.CARD_FILE)


@QUICK
@given(JSON)
def test_configs_of_a_run_that_are_anything(content):
    text = json.dumps(content).encode()
    read_or_refuse(lambda path: workdir.load_config(path.parent), text, workdir.CONFIG_FILE)


@QUICK
@given(st.sampled_from(sorted(config_lib.flatten(config_lib.default_config()))), JSON)
def test_fields_that_are_anything(path, value):
    config = config_lib.default_config()
    try:
        config.update_from_flattened_dict({path: value})
    except (TypeError, ValueError, KeyError, AttributeError):
        return  # what `errors.run_command` turns into a sentence
    with contextlib.suppress(UserError):
        checks.check(config)
