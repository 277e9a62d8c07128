"""A network on disk: whole, old or new whatever happens, and refused where it cannot be right."""

import contextlib
import dataclasses
import json
import os
import threading
import time

import flax.traverse_util
import numpy as np
import pytest

from helpers import golden_state_dict, write_pth
from kd_jax import models
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import load
from kd_jax.weights import saved_network, torch_import

NORMALISATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CARD = saved_network.ModelCard(
    "resnet8", 10, (32, 32, 3), *NORMALISATION, "digits", None, "a test", "0" * 64
)


@pytest.fixture(scope="module")
def networks():
    network = models.build("resnet8", 10, *NORMALISATION)
    return [dict(network.init(seed, (32, 32, 3))) for seed in range(2)]


def changed(variables, name, change):
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    flat[name] = np.array(flat[name])
    change(flat[name])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def one_value(value):
    return lambda array: array.reshape(-1).__setitem__(-1, value)


def test_a_digest_tells_names_shapes_types_and_bytes_apart():
    array = np.arange(6, dtype=np.float32)
    others = [
        {"a": array},
        {"b": array},
        {"a": array.reshape(2, 3)},
        {"a": array.reshape(3, 2)},
        {"a": array.view(np.int32)},
        {"a": array[::-1]},
        {"a": array[:3], "b": array[3:]},
    ]
    digests = [saved_network.digest_of({"params": tree}) for tree in others]
    assert len(set(digests)) == len(others)
    assert saved_network.digest_of({"params": {"a": array.copy()}}) == digests[0]


def test_stored_arrays_have_their_digest_in_the_card(networks, tmp_path):
    saved_network.save(tmp_path, CARD, networks[0])
    card, variables = saved_network.load(tmp_path)
    assert card == dataclasses.replace(CARD, arrays_sha256=saved_network.digest_of(networks[0]))
    assert saved_network.digest_of(variables) == card.arrays_sha256
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors"]


def test_a_kill_at_any_moment_leaves_the_old_network_or_the_new_one(
    networks, tmp_path, monkeypatch
):
    """Every change of the directory is the last one in turn."""
    replace, seen = os.replace, []
    new_card = dataclasses.replace(CARD, mean=(0.1, 0.2, 0.3))
    digests = [saved_network.digest_of(variables) for variables in networks]

    class Killed(BaseException):
        pass

    for moment in range(4):
        directory = tmp_path / str(moment)
        saved_network.save(directory, CARD, networks[0])
        left = [moment]

        def dying(source, target, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        with contextlib.suppress(Killed):
            saved_network.save(directory, new_card, networks[1])
        monkeypatch.setattr(os, "replace", replace)
        card, variables = saved_network.load(directory)
        which = digests.index(saved_network.digest_of(variables))
        assert card.mean == (CARD, new_card)[which].mean
        seen.append(which)
        saved_network.save(directory, new_card, networks[1])
        assert sorted(os.listdir(directory)) == ["model.json", "model.safetensors"]
    assert seen == [0, 0, 1, 1]


@pytest.mark.parametrize("moment", range(3))
def test_of_two_writers_at_once_the_second_waits(moment, networks, tmp_path, monkeypatch):
    """It comes before each change that the first makes in turn."""
    second = threading.Thread(target=saved_network.save, args=(tmp_path, CARD, networks[1]))
    meet(monkeypatch, moment, lambda: (second.start(), second.join(0.1)))
    saved_network.save(tmp_path, CARD, networks[0])
    second.join()
    assert saved_network.digest_of(saved_network.load(tmp_path)[1]) == saved_network.digest_of(
        networks[1]
    )
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize(("moment", "other"), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])
def test_without_locks_writers_leave_each_other_what_they_made(
    moment, other, networks, tmp_path, monkeypatch
):
    monkeypatch.setattr(atomic_files, "fcntl", None)
    meet(monkeypatch, moment, lambda: saved_network.save(tmp_path, CARD, networks[other]))
    saved_network.save(tmp_path, CARD, networks[0])
    assert saved_network.digest_of(saved_network.load(tmp_path)[1]) == saved_network.digest_of(
        networks[0]
    )


def meet(monkeypatch, moment, act):
    """Let something happen right before one of the next changes of a directory."""
    replace, left = os.replace, [moment]

    def meeting(source, target):
        left[0] -= 1
        if left[0] == -1:
            act()
        replace(source, target)

    monkeypatch.setattr(os, "replace", meeting)


def test_what_was_killed_long_ago_is_removed_and_what_is_young_stays(networks, tmp_path):
    for name in ("old", "young"):
        (tmp_path / f".model-{name}.safetensors").touch()
    os.utime(
        tmp_path / ".model-old.safetensors", (time.time() - 2 * atomic_files.STALE_SECONDS,) * 2
    )
    saved_network.save(tmp_path, CARD, networks[0])
    assert [path.name for path in tmp_path.glob(".*")] == [".model-young.safetensors"]


def test_a_first_network_that_was_killed_before_its_last_step_is_there(networks, tmp_path):
    saved_network.save(tmp_path, CARD, networks[0])
    card = saved_network.load_card(tmp_path)
    (tmp_path / "model.safetensors").rename(
        tmp_path / f".model-{card.arrays_sha256[:16]}.safetensors"
    )
    assert saved_network.digest_of(saved_network.load(tmp_path)[1]) == card.arrays_sha256


def test_the_pieces_of_a_first_network_that_was_killed_are_no_other_files(tmp_path):
    assert saved_network.may_be_written(tmp_path)
    (tmp_path / f".kd_jax-1-{'0' * 16}.partial").touch()
    (tmp_path / ".model-0123456789abcdef.safetensors").touch()
    assert saved_network.may_be_written(tmp_path)
    (tmp_path / "thesis.txt").touch()
    assert not saved_network.may_be_written(tmp_path)


def test_arrays_of_another_network_are_refused(networks, tmp_path):
    saved_network.save(tmp_path / "a", CARD, networks[0])
    saved_network.save(tmp_path / "b", CARD, networks[1])
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match=r"does not hold the arrays that model\.json .*replaced"):
        saved_network.load(tmp_path / "a")
    with pytest.raises(UserError, match=r"model\.safetensors is not there"):
        saved_network.load(tmp_path / "b")


def test_directories_from_before_digests_are_read(networks, tmp_path):
    saved_network.save(tmp_path, CARD, networks[0])
    fields = json.loads((tmp_path / "model.json").read_text())
    for name in ("arrays_sha256", "class_names"):
        del fields[name]
    (tmp_path / "model.json").write_text(json.dumps(fields))
    card, _ = saved_network.load(tmp_path)
    assert card.arrays_sha256 == saved_network.digest_of(networks[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_at_load_by_name(networks, tmp_path, value):
    broken = changed(networks[0], "params/fc/kernel", one_value(value))
    saved_network.save(tmp_path, CARD, broken)
    with pytest.raises(UserError, match="params/fc/kernel has 1 of 640 values that are not finite"):
        saved_network.load(tmp_path)


def test_a_negative_variance_and_another_type_are_refused_by_name(networks, tmp_path):
    broken = changed(networks[0], "batch_stats/bn1/var", one_value(-1.0))
    saved_network.save(tmp_path, CARD, broken)
    with pytest.raises(UserError, match=r"batch_stats/bn1/var is a variance and has -1\.0"):
        saved_network.load(tmp_path)
    networks[0]["params"] = dict(networks[0]["params"])
    half = flax.traverse_util.flatten_dict(networks[0], sep="/")
    half["params/fc/bias"] = half["params/fc/bias"].astype(np.float16)
    saved_network.save(tmp_path, CARD, flax.traverse_util.unflatten_dict(half, sep="/"))
    with pytest.raises(UserError, match="params/fc/bias is float16, expected float32"):
        saved_network.load(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
@pytest.mark.parametrize(("value", "words"), [
    (np.nan, "1 of 100 values that are not finite"), (np.inf, "not finite"),
])  # fmt: skip
def test_weights_that_are_not_finite_are_refused_at_import_by_name(tmp_path, suffix, value, words):
    state_dict = golden_state_dict("resnet20")
    state_dict["fc.bias"][7] = value
    path = tmp_path / f"x{suffix}"
    write_pth(path, state_dict) if suffix == ".pth" else np.savez(path, **state_dict)
    with pytest.raises(UserError, match=rf"fc\.bias has {words}" if value != value else words):
        load.import_file("resnet20", path, "cifar100")


def test_what_float32_cannot_hold_and_what_is_quantised_is_refused_by_name():
    network = models.build("resnet8", 10, *NORMALISATION)
    state_dict = torch_import.to_state_dict(network.init(0, (32, 32, 3)))
    large = state_dict | {"fc.bias": np.full(10, 1e300)}
    with pytest.raises(UserError, match=r"fc\.bias has 10 of 10 values that are not finite"):
        torch_import.from_state_dict(network, large, (32, 32, 3))
    quantised = state_dict | {"fc.weight": np.ones((10, 64), np.int8)}
    with pytest.raises(UserError, match=r"fc\.weight holds int8, expected floating-point"):
        torch_import.from_state_dict(network, quantised, (32, 32, 3))


@pytest.mark.parametrize(("name", "value"), [
    ("std", [0.2, 0.0, 0.2]), ("std", [0.2, -1, 0.2]), ("mean", [0.5, float("nan"), 0.5]),
    ("mean", [0.5]), ("std", ["a", 1, 1]), ("num_classes", "ten"), ("num_classes", 0),
    ("image_shape", [32, 32]), ("image_shape", [32, 32, -3]), ("arch", None),
    ("class_names", ["a"]), ("class_names", ["a"] * 10), ("class_names", list(range(10))),
    ("class_names", "abcdefghij"), ("certificate", {"top1": "90"}), ("claimed_top1", "90"),
    ("certificate", "yes"), ("claimed_top1", float("nan")), ("arrays_sha256", None),
])  # fmt: skip
def test_a_card_with_a_value_that_cannot_be_is_refused(networks, tmp_path, name, value):
    saved_network.save(tmp_path, CARD, networks[0])
    fields = json.loads((tmp_path / "model.json").read_text()) | {name: value}
    (tmp_path / "model.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="is not the card of a stored network"):
        saved_network.load_card(tmp_path)


def test_nothing_is_read_beside_a_card_that_is_not_json(tmp_path):
    atomic_files.write_whole(tmp_path / "model.json", b"{")
    with pytest.raises(UserError, match="is not the card"):
        saved_network.load(tmp_path)
