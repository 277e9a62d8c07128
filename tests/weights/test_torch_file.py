"""What a pickle of a stranger can do to its reader: nothing, within bounds of memory."""

import argparse
import collections
import contextlib
import pickle
import struct
import sys
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest

from helpers import View, write_archive, write_pth
from kd_jax.runtime.errors import UserError
from kd_jax.weights import pickle_data, torch_file, torch_pickle

ROOM = 64_000_000


def read(path):
    return torch_file.read_state_dict(path)


def peak_of(path):
    """Return the bytes taken while a file is read or refused, and what was said."""
    tracemalloc.start()
    try:
        read(path)
        said = None
    except UserError as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, said


def test_what_is_read_cannot_be_changed(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {"whole": base, "turned": View(base, 0, (4, 3), (1, 4)),
             "part": View(base, 5, (2,), (2,)), "none": np.zeros((0, 3))}  # fmt: skip
    write_pth(tmp_path / "x.pth", views)
    arrays = read(tmp_path / "x.pth")
    np.testing.assert_array_equal(arrays["whole"], base)
    np.testing.assert_array_equal(arrays["turned"], base.T)
    np.testing.assert_array_equal(arrays["part"], [5, 7])
    assert arrays["none"].shape == (0, 3)
    for array in arrays.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        if array.size:
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True


def test_build_sets_no_attribute_of_ours(tmp_path):
    """A pickle that names a function and gives it attributes, as an object's state."""
    names = [f"c{name.module}\n{name.name}\n" for name in torch_pickle._CALLS]
    state = b"}X\x05\x00\x00\x00stateK\x01s"
    before = [
        dict(vars(call)) for call in torch_pickle._CALLS.values() if hasattr(call, "__dict__")
    ]
    for name in names:
        for end in (b"b.", b"\x86b."):
            write_archive(tmp_path / "x.pth", b"\x80\x02" + name.encode() + state + end)
            with pytest.raises(UserError, match=r"x\.pth"):
                read(tmp_path / "x.pth")
    after = [dict(vars(call)) for call in torch_pickle._CALLS.values() if hasattr(call, "__dict__")]
    assert before == after


@pytest.mark.parametrize(("shape", "steps"), [
    ((10**9,), (0,)), ((4,), (0,)), ((2, 10**6), (1, 0)), ((1000,), (1,)), ((2,), (2**47,)),
    ((2**40, 2**40), (1, 1)), ((2, 2), (1,)), ((-1,), (1,)), ((2,), (-1,)),
])  # fmt: skip
def test_a_tensor_that_its_storage_does_not_hold_is_refused(tmp_path, shape, steps):
    write_pth(tmp_path / "x.pth", {"w": View(np.ones(3, np.float32), 0, shape, steps)})
    peak, said = peak_of(tmp_path / "x.pth")
    assert "cannot be read as a PyTorch file" in said
    assert peak < 2_000_000


def test_a_compressed_archive_is_refused_unread(tmp_path):
    storage = np.zeros(25_000_000, np.float32)
    write_pth(tmp_path / "x.pth", {"w": View(np.ones(3, np.float32), 0, (3,), (1,))})
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        described = archive.read("archive/data.pkl")
    write_archive(tmp_path / "x.pth", described, [storage], compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "x.pth").stat().st_size < 200_000
    peak, said = peak_of(tmp_path / "x.pth")
    assert "is compressed, which torch.save does not do" in said
    assert peak < 2_000_000


def test_many_tensors_of_one_storage_take_its_bytes_once(tmp_path):
    storage = np.arange(1_000_000, dtype=np.float32)
    views = {f"w{n}": View(storage, n, (500_000,), (1,)) for n in range(400)}
    write_pth(tmp_path / "x.pth", views)
    peak, said = peak_of(tmp_path / "x.pth")
    assert said is None
    assert peak < 2 * storage.nbytes + 4_000_000
    np.testing.assert_array_equal(read(tmp_path / "x.pth")["w7"], storage[7:500_007])


def test_of_a_large_storage_only_the_tensors_part_is_read(tmp_path):
    storage = np.arange(10_000_000, dtype=np.float32)
    write_pth(tmp_path / "part.pth", {"w": View(storage, 9_000_000, (5,), (1,))})
    peak, said = peak_of(tmp_path / "part.pth")
    assert said is None
    assert peak < 8_000_000
    np.testing.assert_array_equal(read(tmp_path / "part.pth")["w"], storage[9_000_000:9_000_005])
    write_pth(tmp_path / "x.pth", {"w": View(storage, 0, (2,), (9_999_999,))})
    peak, said = peak_of(tmp_path / "x.pth")
    assert "save them with .clone()" in said
    assert peak < 8_000_000


def test_entries_that_share_their_bytes_count_for_what_the_file_holds(tmp_path):
    """A zip archive whose table names one run of bytes 50 times."""
    storages = [np.full(1_000_000, n, np.float32) for n in range(2)]
    write_pth(tmp_path / "x.pth", {str(n): s for n, s in enumerate(storages)})
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        described = archive.read("archive/data.pkl")
    path = tmp_path / "overlap.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", described)
        archive.writestr("archive/data/0", storages[0].tobytes())
        archive.getinfo("archive/data/0")
        archive.filelist.append(archive.getinfo("archive/data/0"))
        other = zipfile.ZipInfo("archive/data/1")
        for name in ("header_offset", "CRC", "compress_size", "file_size"):
            setattr(other, name, getattr(archive.getinfo("archive/data/0"), name))
        archive.filelist.append(other)
    peak, said = peak_of(path)
    assert "of 4,000," in said
    assert peak < 4_000_000


def op(text):
    return text.encode("latin-1")


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


ZERO, CPU = text("0"), text("cpu")


def storage(kind=b"ctorch\nFloatStorage\n", key=ZERO):
    return b"(" + text("storage") + kind + key + CPU + b"K\x0ftQ"


def ordered(key):
    """Return `OrderedDict([[key, 1]])`."""
    return b"ccollections\nOrderedDict\n]]" + key + b"aK\x01aa\x85R"


def tensor(storage, shape, version=b"2", more=b""):
    return b"ctorch._utils\n_rebuild_tensor_v%s\n(" % version + storage + b"K\x00" + shape + (
        shape + b"\x89}" + more + b"tR"
    )  # fmt: skip


DEEP = b"N" + b"\x85" * 300_000
DOUBLED = b"N\x85" + b"2\x86" * 60  # 2^60 Nones, for whoever walks through it
WIDE = b"N" + (b"q\x000(" + b"h\x00" * 100 + b"t") * 15  # 100^15
UNPLAIN = [
    (b"}" + WIDE + b"Ns", "a key is no plain value"),
    (ordered(WIDE), "a key is no plain value"),
    (storage(key=WIDE), "the key of a storage is a tuple"),
    (storage(WIDE), "a persistent identifier that is no storage"),
    (b"(" + WIDE + b"NNNNtQ", "a persistent identifier that is no storage"),
    (WIDE + b"Q", "too many values to unpack"),
    (WIDE + text("x") + b"\x93", "a name is no text"),
    (text("torch") + WIDE + b"\x93", "a name is no text"),
    (tensor(storage(), WIDE + b"\x85"), "a size is not a whole number .* tuple"),
    (tensor(storage(), WIDE), "a shape is no tuple of up to 32"),
    (tensor(WIDE + b"NK\x09\x87", b"K\x01\x85"), "a tensor has no storage"),
    (tensor(storage(), b"K\x01\x85", b"3", WIDE), "of a type that is none of PyTorch's"),
    (b"ctorch._tensor\n_rebuild_from_type_v2\n(" + WIDE + b"NNNtR", "by something that makes none"),
    (b"ctorch\nSize\n(" + b"N" * 200 + b"tR", "a call has no arguments, or more than 100"),
    (WIDE + b")R", "calls something that is no function"),
]

BOMBS = {
    "tuples in tuples, as the key of a pair": b"\x80\x02" + ordered(DEEP) + b".",
    "tuples in tuples, doubled": b"\x80\x02}" + DOUBLED + b"Ns.",
    "a long tuple as a key, many times": b"\x80\x02}(" + b"N" * 50_000 + b"tq\x000"
    + b"h\x00Ns" * 50_000 + b".",
    "a long number as a key, many times": b"\x80\x02}\x8b" + struct.pack("<I", 2_000_000)
    + b"\x01" * 2_000_000 + b"q\x000" + b"h\x00Ns" * 50_000 + b".",
    "a long shape, many times": b"\x80\x02(" + b"K\x01" * 50_000 + b"tq\x000" + storage()
    + b"q\x010" + tensor(b"h\x01", b"h\x00") * 1000 + b".",
    "pairs of one key, many times": b"\x80\x02(" + b"NK\x01\x86" * 20_000 + b"lq\x000"
    + b"ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R" * 20_000 + b".",
    "memo of 2^31 places": op("\x80\x02]r\xff\xff\xff\x7f."),
    "bytearray of 2^40 bytes": op("\x80\x05\x96") + struct.pack("<Q", 2**40) + b".",
    "bytes of 2^31": op("\x80\x03B\xff\xff\xff\x7fx."),
    "many lists": b"\x80\x02" + b"]" * 400_100 + b".",
    "a list of a million Nones, ten times": b"\x80\x02(" + b"N" * 300_000 + b"l"
    + b"q\x000h\x00\x85" * 20 + b".",
    "copies of a dict": b"\x80\x02(" + b"(K\x01K\x02t" * 20_000 + b"lq\x000"
    + b"ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R" * 100 + b".",
    "tuples in tuples, as a key": b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns.",
    "tuples in tuples": b"\x80\x02N" + b"\x85" * 100_000 + b".",
    "lists in lists": b"\x80\x02" + b"]" * 80_000 + b"a" * 79_999 + b".",
    "text": b"\x80\x02X" + struct.pack("<I", 9_000_000) + b"a" * 9_000_000 + b".",
    "a number of 10^6 digits": b"I" + b"9" * 1_000_000 + b"\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_takes_no_more_memory_than_its_bounds(tmp_path, name):
    write_archive(tmp_path / "x.pth", BOMBS[name])
    peak, said = peak_of(tmp_path / "x.pth")
    assert said is not None
    assert len(said) < 600
    assert peak < ROOM


@pytest.mark.parametrize(("program", "says"), UNPLAIN)
def test_a_value_that_takes_endless_work_is_not_looked_at(tmp_path, program, says):
    write_archive(tmp_path / "x.pth", b"\x80\x02" + program + b".")
    with pytest.raises(UserError, match=says):
        read(tmp_path / "x.pth")


def test_tuples_are_bounded_in_depth():
    for depth, refused in ((20, False), (21, True), (300_000, True)):
        content = b"\x80\x02N" + b"\x85" * depth + b"."
        with pytest.raises(ValueError, match="20 deep") if refused else contextlib.nullcontext():
            torch_pickle.describe(content)


def test_a_table_of_contents_that_fills_the_memory_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for n in range(100):
            archive.writestr(f"archive/{n:0>60000}", b"")
    peak, said = peak_of(tmp_path / "x.pth")
    assert "table of contents" in said
    assert peak < 1_000_000


SIDE = {
    "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999), names=["a", "b"]),
    "counter": collections.Counter("abca"),
    "set": {1, 2, 3},
    "frozen": frozenset({1}),
    "scalar": np.float64(71.2),
    "other scalar": np.int64(3),
    "array": [np.dtype("float32")],
    "complex": 1j,
    "bytes": b"\x00\xff",
    "nested": {"deep": collections.OrderedDict(a=1)},
    "range": range(3),
    "none": None,
}


@pytest.mark.parametrize("name", SIDE)
def test_what_is_often_beside_weights_is_read_and_runs_nothing(tmp_path, name, monkeypatch):
    weights = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}
    write_pth(tmp_path / "x.pth", {"epoch": 3, name: SIDE[name], "state_dict": weights})
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_: 1 / 0)
    assert list(read(tmp_path / "x.pth")) == list(weights)


NAMED = (
    b"ctorch\nSize\n(K\x02K\x03tq\x01\x85R",  # torch.Size((2, 3))
    b"ctorch\ndevice\nX\x03\x00\x00\x00cpu\x85R",
    b"ctorch\nfloat32\n",
    b"ctorch\nper_tensor_affine\n",
)


@pytest.mark.parametrize("described", NAMED)
def test_what_pytorch_itself_lets_pass_is_read(tmp_path, described):
    write_pth(tmp_path / "x.pth", {"state_dict": {"w": np.ones(3)}, "more": None})
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        content = archive.read("archive/data.pkl")
    at = content.rindex(b"N")  # the None above
    changed = content[:at] + described + content[at + 1 :]
    write_archive(tmp_path / "x.pth", changed, [np.ones(3, np.float32)])
    np.testing.assert_array_equal(read(tmp_path / "x.pth")["w"], np.ones(3))


@pytest.mark.parametrize("thing", [threading.Thread, pickle.Unpickler, sys.exit, print])
def test_other_names_are_refused_by_name(tmp_path, thing):
    write_pth(tmp_path / "x.pth", {"state_dict": {"w": np.ones(3)}, "callback": thing})
    name = thing.__qualname__.rsplit(".", maxsplit=1)[-1]
    with pytest.raises(UserError, match=rf"holds .*{name} beside tensors, .* it is refused"):
        read(tmp_path / "x.pth")


def test_big_endian_files(tmp_path):
    write_pth(tmp_path / "x.pth", {"w": View(np.arange(3, dtype=">f4"), 0, (3,), (1,))}, "big")
    np.testing.assert_array_equal(read(tmp_path / "x.pth")["w"], [0, 1, 2])


def test_the_machine_is_pickles_own_where_both_know_the_answer():
    values = [
        None,
        True,
        5,
        -3.5,
        10**30,
        "ä",
        b"x",
        [1, [2, (3, 4, 5, 6)]],
        {"a": {"b": ()}},
        (1,),
    ]
    for protocol in range(6):
        content = pickle.dumps(values, protocol)
        expected = values
        if protocol < 3:  # bytes are made by a call there
            content, expected = pickle.dumps(values[:6], protocol), values[:6]
        assert pickle_data.read(content, {}, lambda _: None) == expected
