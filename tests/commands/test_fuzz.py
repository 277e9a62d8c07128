"""Whatever a file or a config holds: it is read, or refused with one sentence."""

import contextlib
import io
import json
import os
import string
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import write_archive, write_pth
from kd_jax import config as config_lib
from kd_jax.config import checks
from kd_jax.data import class_names, image_folder, tfds_slices
from kd_jax.runtime.errors import UserError
from kd_jax.training import workdir
from kd_jax.weights import saved_network, state_files, torch_pickle

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


NAMES = st.sampled_from(sorted(torch_pickle._CALLS)).map(
    lambda name: f"c{name.module}\n{name.name}\n".encode()
)
NUMBERS = st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1, 2**62, -1]).map(
    lambda n: b"\x8a\x08" + n.to_bytes(8, "little", signed=True)
)
TEXTS = st.text("ab", max_size=3).map(lambda t: b"X" + struct.pack("<I", len(t)) + t.encode())
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0ftQ"
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE
PARTS = (
    st.sampled_from([bytes([opcode]) for opcode in b"(.012NJ]}laesu\x85\x86\x87tbR\x81\x90\x91Qd)"])
    | st.sampled_from([b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x94", STORAGE, TENSOR])
    | NAMES | NUMBERS | TEXTS
)  # fmt: skip


@QUICK
@given(st.lists(PARTS, max_size=30))
def test_pickles_of_any_program_take_no_more_than_the_file_holds(parts):
    """No traceback, and memory within twice the bytes of the tensors and 64 MB."""
    held = 60  # bytes of the one storage

    def read(path):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        arrays = state_files.read(path)
        assert sum(array.nbytes for array in arrays.values()) <= held * len(arrays)
        assert tracemalloc.get_traced_memory()[1] - before < 2 * held + 64_000_000

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.pth"
        write_archive(path, b"\x80\x02" + b"".join(parts) + b".", [np.zeros(15, np.float32)])
        tracemalloc.start()
        try:
            with contextlib.suppress(UserError):
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 64_000_000
        finally:
            tracemalloc.stop()


LEAVES = st.builds(lambda: np.ones((2, 3), np.float32)) | st.integers() | st.none() | st.text("ab")
KEYS = st.sampled_from(
    ["state_dict", "model", "state_dict_ema", "optimizer", "a.b", "module.a", "x"]
)
LAYOUTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(KEYS | st.integers(0, 3), inner, max_size=4) | st.lists(inner, max_size=3)
    ),
    max_leaves=12,
)


@QUICK
@given(LAYOUTS, st.sampled_from(["", "model", "state_dict", "x", "module"]))
def test_state_dicts_in_any_layout(layout, key):
    def read(path):
        arrays = state_files.read(path, key)
        assert arrays
        for name, array in arrays.items():
            assert isinstance(name, str)
            np.testing.assert_array_equal(array, np.ones((2, 3)))

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.pth"
        write_pth(path, layout)
        with contextlib.suppress(UserError):
            read(path)


@QUICK
@given(JSON)
def test_cards_that_are_anything(content):
    text = json.dumps(content).encode()
    read_or_refuse(lambda path: saved_network.load_card(path.parent), text, saved_network.CARD_FILE)


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


def some_images():
    """Whole images of many kinds and modes, and what is none."""
    made = [b"", b"no image", b"GIF89a", b"\x89PNG\r\n\x1a\n"]
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, kind, options in (
        ("RGB", "png", {}), ("RGB", "jpeg", {"exif": exif}), ("RGBA", "png", {}), ("L", "gif", {}),
        ("P", "png", {"transparency": 3}), ("CMYK", "tiff", {}), ("F", "tiff", {}),
        ("I", "tiff", {}), ("1", "bmp", {}), ("RGB", "webp", {"exif": b"Exif\0\0II*\0"}),
        ("RGB", "gif", {"save_all": True, "append_images": [square.rotate(90)]}),
    ):  # fmt: skip
        file = io.BytesIO()
        square.convert(mode).save(file, kind, **options)
        made.append(file.getvalue())
    return made


NAME = st.sampled_from([
    "ant", "bee", "train", "test", "val", "a", "1.png", "2.PNG", "x.jpg", "y.tif", "z.gif",
    "w.heic", ".ipynb_checkpoints", "._1.png", ".DS_Store", "__MACOSX", "über", "u\u0308ber",
    "new\nline.png", "-o.png", " ", "no ending", "%s%d.png", "\udcff.png", "\udcff", "...",
])  # fmt: skip
ABOVE = [
    [],
    ["train"],
    ["test"],
    *(["train", name] for name in ("ant", "bee", "cat")),
    ["test", "ant"],
]
PATHS = st.builds(lambda above, below: [*above, *below], st.sampled_from(ABOVE[:3] + 3 * ABOVE[3:]),
                  st.lists(NAME, min_size=1, max_size=3))  # fmt: skip
CONTENT = (
    st.none()  # a directory
    | st.sampled_from(some_images())
    | st.builds(lambda content, n: content[: n % (len(content) + 1)],
                st.sampled_from(some_images()), st.integers(0, 10**4))
    | st.lists(st.sampled_from([*"abt", "..", ".", "ant", "bee", "1.png", "train"]), max_size=4)
)  # fmt: skip


def plant(root, path, content):
    """Make a file, a directory or a link, as far as what was planted before lets it."""
    place = root.joinpath(*path)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            place.mkdir()
        elif isinstance(content, bytes):
            place.write_bytes(content)
        else:
            place.symlink_to(os.path.join(*content) if content else "nothing")


def test_folders_that_are_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    whole = some_images()[4]
    read = []

    @settings(QUICK, max_examples=60)
    @given(st.lists(st.tuples(PATHS, CONTENT), max_size=8),
           st.sampled_from([0, 5]),
           st.sampled_from(["test"] * 5 + ["val", "train/ant", "."]),
           st.sampled_from([True, True, True, False]))  # fmt: skip
    def fuzz(planted, image_size, test_split, with_classes):
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory) / "set"
            for name in ("ant", "bee", "cat") if with_classes else ():
                plant(root, ["train", name, "0.png"], whole)
                plant(root, ["train", name, "deeper", "1.png"], whole)
            for path, content in planted:
                plant(root, path, content)
            options = config_lib.default_config().dataset
            options.name, options.data_dir = "folder", str(root)
            options.image_size, options.test_split = image_size, test_split
            with contextlib.suppress(UserError):  # any other error fails the test
                source = image_folder.read(options)
                names = class_names.of(options)
                assert len(set(names)) == source.num_classes >= 2
                assert not any(name.startswith((".", "__MACOSX")) for name in names)
                for split in (source.train, source.test):
                    assert split.images.dtype == np.uint8
                    assert split.images.shape[0] == len(split.labels)
                    assert split.images.shape[3] == 3
                assert set(source.train.labels) == set(range(len(names)))
                read.append(source)

    fuzz()
    assert len(read) > 10  # the trees are not all refused


def test_parts_of_a_split_that_are_anything():
    characters = st.sampled_from([*"train[]:%-+. 0123456789", "shard", "train", "test", "all"])

    @QUICK
    @given(st.lists(characters, max_size=9), st.lists(characters, max_size=9))
    def fuzz(one, other):
        specs = {"train_split": "".join(one), "test_split": "".join(other)}
        lengths = {"train": [60, 40], "test": [20]}
        with contextlib.suppress(UserError):
            counts = tfds_slices.check(specs, lengths)
            assert all(counts.values())
            assert sum(counts.values()) <= 120

    fuzz()
