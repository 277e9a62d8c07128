"""PyTorch files: read exactly, refused with one sentence, never run."""

import contextlib
import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from helpers import golden_state_dict, write_pth
from kd_jax import models
from kd_jax.models import zoo
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import load
from kd_jax.weights import (
    saved_network,
    state_dicts,
    state_files,
    torch_file,
    torch_import,
)

# BiT's round trips, in three layouts, are in test_bit.py.
ARCHS = tuple(arch for arch in zoo.NAMES if not arch.startswith("bit_"))


def build(arch, classes=100):
    return models.build(arch, classes, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("arch", ARCHS)
def test_round_trip_is_exact(arch):
    variables = build(arch).init(0, (32, 32, 3))
    state_dict = torch_import.to_state_dict(variables)
    again = torch_import.from_state_dict(build(arch), state_dict, (32, 32, 3))
    flat = models.flat_shapes(build(arch), (32, 32, 3))
    assert len(state_dict) == len(flat)
    for path in flat:
        left, right = variables, again
        for name in path:
            left, right = left[name], right[name]
        np.testing.assert_array_equal(left, right)


def test_file_is_read_exactly(tmp_path):
    state_dict = golden_state_dict("resnet20")
    write_pth(tmp_path / "x.pth", state_dict)
    read = torch_file.read_state_dict(tmp_path / "x.pth")
    assert list(read) == list(state_dict)
    for key, value in state_dict.items():
        np.testing.assert_array_equal(read[key], value)


def test_reader_equals_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install torch to compare with its reader")
    base = torch.randn(4, 6)
    state_dict = {
        "a": base,
        "b": base.T,  # not contiguous, same storage
        "c": base[1:3, ::2],
        "d": torch.arange(5),
        "e": torch.randn(3).to(torch.bfloat16),
        "f": torch.tensor(2.5),
        "g": torch.zeros(0, 3),
    }
    torch.save({"state_dict": {f"module.{k}": v for k, v in state_dict.items()}}, tmp_path / "x.pt")
    read = state_dicts.without_prefix(torch_file.read_state_dict(tmp_path / "x.pt"))
    assert list(read) == list(state_dict)
    for key, value in state_dict.items():
        assert read[key].shape == tuple(value.shape)
        np.testing.assert_array_equal(read[key].astype(np.float32), value.float().numpy())


def test_all_mismatches_are_named_at_once_with_what_would_fit():
    state_dict = golden_state_dict("resnet20")
    with pytest.raises(UserError) as caught:
        torch_import.from_state_dict(build("resnet32"), state_dict, (32, 32, 3))
    assert "missing layer1.3.conv1.weight" in str(caught.value)
    assert "they fit resnet20 with 100 classes" in str(caught.value)
    state_dict["extra.weight"] = state_dict.pop("conv1.weight")
    with pytest.raises(UserError) as caught:
        torch_import.from_state_dict(build("resnet20"), state_dict, (32, 32, 3))
    assert "missing conv1.weight; unexpected extra.weight" in str(caught.value)


def test_another_head_is_told_from_another_network():
    state_dict = torch_import.to_state_dict(build("resnet20", 10).init(0, (32, 32, 3)))
    with pytest.raises(UserError, match=r"they fit resnet20 with 10 classes; fc\.bias has shape"):
        torch_import.from_state_dict(build("resnet20", 100), state_dict, (32, 32, 3))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious(tmp_path / "ran"), protocol=2))
    with pytest.raises(UserError, match=r"evil\.pth holds .*open.* it is refused"):
        torch_file.read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_pytorch(tmp_path):
    (tmp_path / "text.pth").write_text("weights\n" * 100)
    write_pth(tmp_path / "whole.pth", golden_state_dict("resnet20"))
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "no tensors here")
    with zipfile.ZipFile(tmp_path / "list.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1, 2], protocol=2))
    for name in ("text", "cut", "empty", "other", "list", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.pth"):
            torch_file.read_state_dict(tmp_path / f"{name}.pth")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_never_give_a_traceback(tmp_path, seed):
    write_pth(tmp_path / "x.pth", {"a": np.ones((3, 4)), "b": np.zeros(5)})
    rng = np.random.default_rng(seed)
    content = bytearray((tmp_path / "x.pth").read_bytes())
    for position in rng.integers(0, len(content), 8):
        content[position] = rng.integers(256)
    (tmp_path / "x.pth").write_bytes(content)
    with contextlib.suppress(UserError):  # any other error fails the test
        torch_file.read_state_dict(tmp_path / "x.pth")


def test_safetensors_and_npz_are_the_same_network(tmp_path):
    state_dict = golden_state_dict("resnet20")
    write_pth(tmp_path / "x.pth", state_dict)
    safetensors.numpy.save_file(state_dict, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **state_dict)
    digests = {
        saved_network.digest_of(load.import_file("resnet20", path, "cifar100")[1])
        for path in tmp_path.iterdir()
    }
    assert len(digests) == 1


def test_bfloat16_survives_an_npz(tmp_path):
    values = np.arange(8, dtype=np.float32).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", weight=values, step=np.int64(3))
    read = state_files.read(tmp_path / "x.npz")
    np.testing.assert_array_equal(read["weight"].astype(np.float32), np.arange(8))
    assert read["step"] == 3


def test_safetensors_and_npz_that_are_not(tmp_path):
    (tmp_path / "text.npz").write_text("weights\n" * 100)
    (tmp_path / "text.safetensors").write_text("weights\n" * 100)
    np.savez(tmp_path / "whole.npz", **golden_state_dict("resnet20"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:50_000])
    np.savez(tmp_path / "evil.npz", a=np.array([Malicious(tmp_path / "ran")], dtype=object))
    np.savez(tmp_path / "words.npz", weight=np.array(["a", "b"]))
    np.save(tmp_path / "one", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("text.npz", "text.safetensors", "cut.npz", "evil.npz", "one.npz", "words.npz",
                 "absent.npz"):  # fmt: skip
        with pytest.raises(UserError, match=name):
            state_files.read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_an_npz_that_declares_more_than_it_holds_is_refused_before_room_is_made(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", a=np.zeros(1000), b=np.arange(5))
    assert set(state_files.read(tmp_path / "whole.npz")) == {"a", "b"}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**11,)}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(100))
    with pytest.raises(UserError, match=r"a\.npy declares 400,000,000,000 bytes and holds fewer"):
        state_files.read(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(UserError, match=r"text\.npz is not a whole \.npz file"):
        state_files.read(tmp_path / "text.npz")


def test_a_part_of_a_stored_network_is_told_from_foreign_weights(tmp_path):
    write_pth(tmp_path / "x.pth", golden_state_dict("resnet20"))
    saved_network.save(
        tmp_path / "own", *load.import_file("resnet20", tmp_path / "x.pth", "cifar100")
    )
    with pytest.raises(UserError, match=r"give its directory, .*own, as"):
        state_files.read(tmp_path / "own" / "model.safetensors")


def test_a_stored_network_is_read_back_exactly(tmp_path):
    write_pth(tmp_path / "x.pth", golden_state_dict("resnet20"))
    card, variables = load.import_file("resnet20", tmp_path / "x.pth", "cifar100")
    saved_network.save(tmp_path / "stored", card, variables)
    card_again, variables_again = saved_network.load(tmp_path / "stored")
    assert card_again == card
    assert saved_network.digest_of(variables_again) == saved_network.digest_of(variables)


def test_damaged_stored_networks(tmp_path):
    write_pth(tmp_path / "x.pth", golden_state_dict("resnet20"))
    card, variables = load.import_file("resnet20", tmp_path / "x.pth", "cifar100")
    saved_network.save(tmp_path / "d", card, variables)
    del variables["params"]["fc"]
    saved_network.save(tmp_path / "lacks", card, variables)
    with pytest.raises(UserError, match="missing params/fc/bias"):
        saved_network.load(tmp_path / "lacks")
    (tmp_path / "d" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        saved_network.load(tmp_path / "d")
    (tmp_path / "d" / "model.json").write_text("[1]")
    with pytest.raises(UserError, match="not the card of a stored network"):
        saved_network.load(tmp_path / "d")
