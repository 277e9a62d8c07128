"""Where people keep weights: found in every layout, or told what is there instead."""

import argparse
import collections
import itertools
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from helpers import golden_state_dict, patched_zoo, write_pth
from kd_jax import models
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import load
from kd_jax.weights import name_maps, state_dicts, state_files, torch_import

WEIGHTS = {"conv1.weight": np.ones((2, 3, 1, 1)), "fc.weight": np.ones((5, 2)),
           "fc.bias": np.arange(5.0)}  # fmt: skip
AVERAGED = {name: 2 * array for name, array in WEIGHTS.items()}
WRITERS = {
    ".pth": write_pth,
    ".npz": lambda path, arrays: np.savez(path, **arrays),
    ".safetensors": lambda path, arrays: safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, path
    ),
}
PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "student.")


def names_in(path):
    return list(name_maps.recognise(state_files.read(path))[1])


@pytest.mark.parametrize("suffix", WRITERS)
def test_prefixes_of_wrappers_are_dropped_alone_and_stacked(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    stacked = [*itertools.permutations(PREFIXES[:3], 2), PREFIXES]
    for prefixes in [(), *((prefix,) for prefix in PREFIXES), *stacked]:
        prefix = "".join(prefixes)
        WRITERS[suffix](path, {f"{prefix}{name}": array for name, array in WEIGHTS.items()})
        assert sorted(names_in(path)) == sorted(WEIGHTS)


def test_a_prefix_that_is_not_before_all_names_stays():
    mixed = {"module.a": 1, "b": 2}
    assert state_dicts.without_prefix(mixed) == mixed
    assert state_dicts.without_prefix({}) == {}
    assert state_dicts.common_prefix({"a.b.c": 1, "a.b.d.e": 2}) == "a.b."
    assert state_dicts.common_prefix({"a.b": 1, "c": 2}) == ""


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_counter_of_an_averaged_model_is_no_weight(tmp_path, suffix):
    averaged = {"n_averaged": np.array(7.0)} | {f"module.{n}": a for n, a in WEIGHTS.items()}
    WRITERS[suffix](tmp_path / f"x{suffix}", averaged)
    assert sorted(names_in(tmp_path / f"x{suffix}")) == sorted(WEIGHTS)


LAYOUTS = {
    **{key: {key: WEIGHTS, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}}
       for key in ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")},
    "any name, the only one": {"our network": WEIGHTS, "epoch": 3},
    "deeper": {"checkpoint": {"model": WEIGHTS, "epoch": 3}},
    "beside a measured tensor": {"state_dict": WEIGHTS, "best_acc1": np.array(71.2)},
    "beside plain values": WEIGHTS | {"epoch": 3, "name": "resnet"},
    "beside a command line": {"args": argparse.Namespace(a=1), "model": WEIGHTS},
    "beside statistics of an optimiser": {
        "model": WEIGHTS, "optimizer_state_dict": {"momentum": {"fc.bias": np.ones(5)}},
        "lr_scheduler": {"last": np.ones(1)}, "rng_state": {"cpu": np.ones(9)},
    },
    "twice the same": dict.fromkeys(("model", "state_dict"), WEIGHTS),
    "counted": {"state_dict": WEIGHTS, "seen": collections.Counter("aab")},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_state_dict_is_found(tmp_path, name, caplog):
    logger.propagate = True
    write_pth(tmp_path / "x.pth", LAYOUTS[name])
    read = state_files.read(tmp_path / "x.pth")
    assert list(read) == list(WEIGHTS)
    np.testing.assert_array_equal(read["fc.bias"], WEIGHTS["fc.bias"])
    assert "several" not in caplog.text


def test_of_two_it_is_said_which_was_taken_and_one_may_choose(tmp_path, caplog):
    logger.propagate = True
    write_pth(tmp_path / "x.pth", {"state_dict_ema": AVERAGED, "state_dict": WEIGHTS})
    assert state_files.read(tmp_path / "x.pth")["fc.bias"][1] == 1
    assert "state_dict is taken; state_dict_ema can be had with" in caplog.text
    assert state_files.read(tmp_path / "x.pth", "state_dict_ema")["fc.bias"][1] == 2
    with pytest.raises(UserError, match="no weights under --key=ema: expected one of state_dict_"):
        state_files.read(tmp_path / "x.pth", "ema")


@pytest.mark.parametrize(("beside", "said"), [
    ({"state_dict": WEIGHTS | {"version": "1"}, "ema": AVERAGED}, "state_dict is taken; ema can"),
    ({"ema": AVERAGED, "ours": {"model": {"fc.bias": np.arange(2.0), "n": 3}}},
     "ours.model is taken; ema"),
    ({"state_dict": WEIGHTS, "ema": AVERAGED | {"epoch": 3}}, "state_dict is taken; ema can"),
    ({"state_dict": WEIGHTS, "classes": np.eye(3)}, "the tensors beside it are left out"),
    ({"state_dict": WEIGHTS, "scores": {"accuracy": np.array(7.0), "epoch": 3}}, ""),
])  # fmt: skip
def test_a_value_that_is_no_tensor_hides_no_weights(tmp_path, beside, said, caplog):
    logger.propagate = True
    write_pth(tmp_path / "x.pth", beside)
    assert state_files.read(tmp_path / "x.pth")["fc.bias"][1] == 1  # 2 in the averaged one
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.parametrize("content", [
    {"first": WEIGHTS, "second": AVERAGED | {"epoch": 3}},
    WEIGHTS | {"scores": {"accuracy": np.array(7.0)}},
])  # fmt: skip
def test_of_two_sets_one_of_which_holds_other_values_none_is_taken(tmp_path, content):
    write_pth(tmp_path / "x.pth", content)
    with pytest.raises(UserError, match=r"several sets of weights \((first, second|scores, one)"):
        state_files.read(tmp_path / "x.pth")


@pytest.mark.parametrize(("key", "says"), [
    ("k" * 9000, "holds no state dict"), ("k", r"several sets of weights .* and 90 more"),
])  # fmt: skip
def test_the_search_is_bounded_and_says_so(key, says, caplog):
    logger.propagate = True
    content = {key: {f"a{n}": {"w": np.ones(1)} for n in range(20_000)}}
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=says):
            state_dicts.choose(content, "", Path("x"), lambda x: isinstance(x, np.ndarray))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "more dicts than are looked at: of 100 sets" in caplog.text


def test_of_two_that_nothing_tells_apart_none_is_taken(tmp_path):
    write_pth(tmp_path / "x.pth", {"first": WEIGHTS, "second": AVERAGED})
    with pytest.raises(UserError, match=r"several sets of weights \(first, second\): choose one"):
        state_files.read(tmp_path / "x.pth")
    assert state_files.read(tmp_path / "x.pth", "second")["fc.bias"][1] == 2


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_part_of_the_names_may_be_chosen(tmp_path, suffix):
    """A distillation's own checkpoint: student and teacher in one state dict."""
    both = {f"student.{n}": a for n, a in WEIGHTS.items()}
    both |= {f"teacher.{n}": a for n, a in AVERAGED.items()}
    WRITERS[suffix](tmp_path / f"x{suffix}", both)
    for key, factor in (("student", 1), ("teacher", 2)):
        read = state_files.read(tmp_path / f"x{suffix}", key)
        assert sorted(read) == sorted(WEIGHTS)
        assert read["fc.bias"][1] == factor
    with pytest.raises(UserError, match=r"under --key=pupil: expected one of .*student, teacher"):
        state_files.read(tmp_path / f"x{suffix}", "pupil")


@pytest.fixture
def small_zoo():
    with patched_zoo("resnet20"):
        yield


def test_a_message_names_the_common_prefix_what_fits_and_ten_keys(small_zoo):
    state_dict = {f"backbone.{n}": a for n, a in golden_state_dict("resnet20").items()}
    network = models.build("resnet20", 100, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError) as caught:
        torch_import.from_state_dict(network, state_dict, (32, 32, 3))
    said = str(caught.value)
    assert "begin with backbone., without which they fit resnet20 with 100 classes" in said
    assert "kd_jax.import_teacher --key=backbone takes it away" in said
    assert len(re.findall(r"missing |unexpected ", said)) == 10
    assert re.search(r"; and \d+ more$", said)
    assert len(said) < 700


@pytest.mark.parametrize(("layout", "shape"), [
    (name_maps.BIT_TENSORFLOW, ()), (name_maps.PYTORCH, ()), (name_maps.PYTORCH, (2, 3)),
])  # fmt: skip
def test_a_head_that_is_no_vector_is_one_sentence(small_zoo, layout, shape):
    network = models.build("resnet20", 100, (0.5,) * 3, (0.5,) * 3)
    arrays = {layout.head: np.zeros(shape, np.float32), "x": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match="no architecture of the zoo fits them"):
        torch_import.from_state_dict(network, arrays, (32, 32, 3))


def test_a_message_is_short_whatever_the_names_are(small_zoo, tmp_path):
    network = models.build("resnet20", 100, (0.5,) * 3, (0.5,) * 3)
    names = {f"{n}{'x' * 8000}.{'y' * 8000}": np.ones(1, np.float32) for n in range(50)}
    with pytest.raises(UserError) as caught:
        torch_import.from_state_dict(network, names, (32, 32, 3))
    assert len(str(caught.value)) < 1500
    short = {f"{n}{'x' * 200}": {"w": np.ones(1)} for n in range(50)}
    write_pth(tmp_path / "x.pth", short)
    with pytest.raises(UserError) as caught:
        state_files.read(tmp_path / "x.pth")
    assert len(str(caught.value)) < 1500
    assert "and 40 more" in str(caught.value)


FOREIGN = {
    "x.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes it"),
    "weights.bin": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes it"),
    "x.keras": (None, "a Keras model"),
    "x.msgpack": (b"\x82\xa6params", "a Flax file of msgpack"),
    "x.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
    "x.ckpt": (b"\x00tf", "a TensorFlow checkpoint, or one that is damaged"),
    "x.ckpt.index": (b"\x00tf", "a part of a TensorFlow checkpoint"),
    "x.pkl": (b"\x80\x04N.", "a Python pickle"),
    "old.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02", "before 1.6"),
    "page.pth": (b"<!DOCTYPE html>", "a page of HTML"),
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
    "page.safetensors": (b"<html>", "a page of HTML"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
    "x.npy": (b"\x93NUMPY", "a single array"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_programs_are_told_by_what_they_are(tmp_path, name):
    content, kind = FOREIGN[name]
    if content is None:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("model.weights.h5", b"\x89HDF")
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        state_files.read(tmp_path / name)
    said = str(caught.value)
    assert kind in said
    assert "expected a file as torch.save, safetensors or numpy.savez writes it" in said
    assert "fetch it again" not in said
    with pytest.raises(UserError) as caught:  # before its architecture is asked for
        load.read(str(tmp_path / name), "", "cifar100")
    assert str(caught.value) == said


def test_a_safetensors_file_may_begin_as_a_page_does(tmp_path):
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(ord("<"))
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\x07")
    assert state_files.read(tmp_path / "x.safetensors")["w"] == 7


def test_lightnings_ckpt_is_what_torch_save_writes(tmp_path):
    write_pth(tmp_path / "x.ckpt", {
        "state_dict": {f"net.{n}": a for n, a in WEIGHTS.items()}, "epoch": 3,
        "callbacks": {"best": {"score": np.ones(1)}}, "hyper_parameters": {"lr": 0.1},
    })  # fmt: skip
    assert names_in(tmp_path / "x.ckpt") == list(WEIGHTS)


@pytest.mark.slow
def test_what_pytorch_itself_writes_is_found(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install torch to compare with its files")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3, 1, 1)).sum().backward()
    optimiser.step()
    own = net.state_dict()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    beside = {
        "optimizer_state_dict": optimiser.state_dict(), "rng": torch.get_rng_state(),
        "args": argparse.Namespace(device=torch.device("cpu"), size=torch.Size([1, 2])),
        "dtype": torch.bfloat16, "best": torch.tensor(71.5), "accuracy": np.float64(71.5),
        "phase": torch.ones(2, dtype=torch.complex64), "small": torch.ones(2).to(torch.float8_e5m2),
        "sparse": torch.eye(2).to_sparse(),
    }  # fmt: skip
    for content in (own, torch.nn.DataParallel(net).state_dict(), torch.compile(net).state_dict(),
                    averaged.state_dict(), {"model_state_dict": own, **beside},
                    {"state_dict": torch.nn.DataParallel(torch.compile(net)).state_dict()},
                    net.to(memory_format=torch.channels_last).state_dict()):  # fmt: skip
        torch.save(content, tmp_path / "x.pt")
        arrays = name_maps.recognise(state_files.read(tmp_path / "x.pt"))[1]
        assert list(arrays) == list(own)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, own[name].numpy())
    torch.jit.script(net).save(tmp_path / "script.pt")
    with pytest.raises(UserError, match="is a program of TorchScript"):
        state_files.read(tmp_path / "script.pt")
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"holds torch\.nn\..*Sequential beside tensors"):
        state_files.read(tmp_path / "whole.pt")
