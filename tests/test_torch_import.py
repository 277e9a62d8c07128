"""PyTorch files: read exactly, refused with one sentence, never run."""

import contextlib
import pickle
import zipfile

import numpy as np
import pytest

from helpers import golden_state_dict, write_pth
from kd_jax import models, teachers, torch_file, torch_import, weights
from kd_jax.errors import UserError

ARCHS = tuple(models.MODELS)


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
    read = torch_file.read_state_dict(tmp_path / "x.pt")
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


def test_a_stored_network_is_read_back_exactly(tmp_path):
    write_pth(tmp_path / "x.pth", golden_state_dict("resnet20"))
    card, variables = teachers.import_file("resnet20", tmp_path / "x.pth", "cifar100")
    weights.save(tmp_path / "stored", card, variables)
    card_again, variables_again = weights.load(tmp_path / "stored")
    assert card_again == card
    assert weights.digest_of(variables_again) == weights.digest_of(variables)


def test_damaged_stored_networks(tmp_path):
    write_pth(tmp_path / "x.pth", golden_state_dict("resnet20"))
    card, variables = teachers.import_file("resnet20", tmp_path / "x.pth", "cifar100")
    weights.save(tmp_path / "d", card, variables)
    del variables["params"]["fc"]
    weights.save(tmp_path / "lacks", card, variables)
    with pytest.raises(UserError, match="missing params/fc/bias"):
        weights.load(tmp_path / "lacks")
    (tmp_path / "d" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        weights.load(tmp_path / "d")
    (tmp_path / "d" / "model.json").write_text("[1]")
    with pytest.raises(UserError, match="not the card of a stored network"):
        weights.load(tmp_path / "d")
