"""The names of classes, wherever the images come from, and in the card of a finished run."""

import json

import pytest

from image_folders import make_folder, options
from kd_jax.data import class_names, dataset
from kd_jax.runtime.console import logger
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from tiny_runs import StopAfter, digits_config


def write_set(directory, names):
    """Write what `class_names` reads of a set that tfds prepared."""
    directory.mkdir(parents=True)
    splits = [{"name": name, "shardLengths": ["9"]} for name in ("train", "test")]
    (directory / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    (directory / "features.json").write_text("{}")
    if names is not None:
        (directory / "label.labels.txt").write_text(names, encoding="utf-8")


def test_names_are_those_of_the_version_that_is_read(tmp_path, monkeypatch):
    write_set(tmp_path / "odd" / "1.0.0", "old\nolder\n")
    write_set(tmp_path / "odd" / "2.0.0", "ant hill\nbee\u2028hive\n\n über \n")
    write_set(tmp_path / "odd" / "small" / "1.0.0", "one\ntwo\n")
    expected = {
        "odd": ("ant hill", "bee\u2028hive", "über"),  # lines end where tfds ends them
        "odd:1.0.0": ("old", "older"),
        "odd/small": ("one", "two"),
    }
    for name, names in expected.items():
        assert class_names.of(options(name=name, data_dir=str(tmp_path))) == names
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert class_names.of(options(name="odd:1.0.0")) == ("old", "older")


@pytest.mark.parametrize("names", [None, ""])
def test_numbers_are_not_taken_for_names(names, tmp_path):
    write_set(tmp_path / "odd" / "1.0.0", names)
    assert class_names.known(options(name="odd", data_dir=str(tmp_path)), 10) is None


@pytest.mark.parametrize(("names", "classes"), [("crane\nant\ncrane\n", 3), ("ant\nbee\n", 3)])
def test_names_that_do_not_tell_the_classes_apart_are_left_out_aloud(
    names, classes, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logger, "propagate", True)
    write_set(tmp_path / "odd" / "1.0.0", names)
    assert class_names.known(options(name="odd", data_dir=str(tmp_path)), classes) is None
    assert "the names of the classes of odd are left out" in caplog.text


def test_a_card_has_the_names_of_the_images_that_were_read(tmp_path, monkeypatch):
    """And not those of the directories that are there when the run ends."""
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    make_folder(tmp_path / "set", count=20)
    config = digits_config(1)
    config.dataset.name, config.dataset.data_dir = "folder", str(tmp_path / "set")
    config.dataset.val_examples, config.total_steps = 8, 4
    names = ("ant", "bee", "über")
    assert dataset.load(config.dataset).class_names == names

    def rename():
        (tmp_path / "set" / "train" / "bee").rename(tmp_path / "set" / "train" / "zebra")

    train(config, tmp_path / "run", StopAfter(2, rename))
    assert not (tmp_path / "set" / "train" / "bee").exists()
    assert saved_network.load_card(tmp_path / "run").class_names == names
