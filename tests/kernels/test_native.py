"""The library of compiled layers: made once, never trusted blindly, and never needed."""

import ctypes
import os
import subprocess
import sys

import pytest

from helpers import ROOT
from kd_jax.kernels import native
from kd_jax.runtime import processor

needs_compiler = pytest.mark.skipif(native.digest() is None, reason="needs a C++ compiler: set CXX")
# Multiply by hand what the compiled stem multiplies: the sum of 27 products.
PROBE = """
import numpy as np
from kd_jax.kernels import native, stem
x, kernel = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 3, 8), np.float32)
assert native.target(native.STEM), "nothing is compiled"
assert float(stem.conv2d(x, kernel, 1)[0, 1, 1, 0]) == 27.0
"""


def in_cache(monkeypatch, cache):
    """Look for the library in another cache, as a process does that has not looked yet."""
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(cache))
    return native._library.__wrapped__()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A cache with a freshly compiled library, by two processes that start together."""
    cache = tmp_path_factory.mktemp("cache")
    variables = os.environ | {"KD_JAX_CACHE_DIR": str(cache)}
    both = [
        subprocess.Popen([sys.executable, "-c", PROBE], env=variables, cwd=ROOT) for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    (path,) = (cache / "native").iterdir()
    return path


@needs_compiler
def test_two_processes_at_first_start_make_one_library(library):
    assert library.stat().st_mode & 0o777 == 0o500
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert native._is_whole(library)


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "truncated", "changed", "writable"])
def test_a_damaged_library_is_made_again(damage, library, tmp_path, monkeypatch):
    content = library.read_bytes()
    cache = tmp_path / "cache"
    (cache / "native").mkdir(parents=True, mode=0o700)
    path = cache / "native" / library.name
    wrong = {"empty": b"", "truncated": content[: len(content) // 2], "writable": content}
    wrong["changed"] = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    path.write_bytes(wrong[damage])
    path.chmod(0o777 if damage == "writable" else 0o500)
    made = []
    monkeypatch.setattr(native, "_compile", lambda compiler, to: made.append(to) or replace(to))

    def replace(to):
        to.unlink()
        to.write_bytes(content)

    name, loaded = in_cache(monkeypatch, cache)
    assert made == [path]
    assert name in path.name
    assert getattr(loaded, native.STEM)


@needs_compiler
def test_a_directory_that_others_may_write_to_is_not_trusted(library, tmp_path, monkeypatch):
    place = tmp_path / "native"
    place.mkdir()
    place.chmod(0o777)
    (place / library.name).write_bytes(library.read_bytes())
    made = []
    monkeypatch.setattr(
        native, "_compile", lambda compiler, to: made.append(to.write_bytes(library.read_bytes()))
    )
    assert in_cache(monkeypatch, tmp_path)
    assert len(made) == 1
    assert place.stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_a_library_without_a_layer_leaves_it_to_another_form(monkeypatch, caplog):
    monkeypatch.setattr(native, "_library", lambda: ("empty", ctypes.CDLL(None)))
    monkeypatch.setattr(native.logger, "propagate", True)
    with caplog.at_level("INFO"):
        assert native.target.__wrapped__(native.WINOGRAD) is None
    assert "KdJaxWinograd is not in the compiled library" in caplog.text


def test_without_a_compiler_there_is_another_way(tmp_path, monkeypatch):
    """A compiler that is not there, one that fails, and none wanted: no library, no error."""
    for name, value in (("CXX", "no-such-compiler"), ("CXX", "false"), ("KD_JAX_NATIVE", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert in_cache(patch, tmp_path) is None
    assert not list(tmp_path.rglob("*.so"))


def test_lanes_are_those_of_the_class():
    """A class without vectors compiles nothing; the others' widths are those of vectors.h."""
    header = (ROOT / "kd_jax" / "kernels" / "native" / "vectors.h").read_text()
    for kind in processor.CLASSES.values():
        assert not kind.lanes or f"kNative = {kind.lanes}," in header
    assert not processor.CLASSES["other"].lanes
