"""Folders of images: read whole, trained on, resumed."""

import numpy as np
import pytest

from helpers import run
from image_folders import folder, make_folder, options
from kd_jax.data import dataset
from kd_jax.runtime.atomic_files import read_json
from kd_jax.runtime.signals import StoppedError
from kd_jax.training.train import train
from tiny_runs import StopAfter, digits_config


def test_a_folder_is_read_whole_in_the_order_of_its_names(tmp_path):
    written = make_folder(tmp_path, count=12, test=True)
    source = folder(tmp_path)
    assert len(source.train) + len(source.test) == written
    assert source.num_classes == 3
    for split in (source.train, source.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        np.testing.assert_array_equal(split.images.mean((1, 2)).argmax(1), split.labels)


def test_without_a_test_split_a_fifth_is_held_out_and_always_the_same(tmp_path):
    make_folder(tmp_path, count=20)
    source, again = folder(tmp_path), folder(tmp_path)
    np.testing.assert_array_equal(np.bincount(source.test.labels), [4, 4, 4])
    assert source.fingerprint() == again.fingerprint()
    trained = {image.tobytes() for image in source.train.images}
    assert not any(image.tobytes() in trained for image in source.test.images)


def test_a_run_on_a_folder_of_300_images_resumes_to_the_same_bits(tmp_path):
    make_folder(tmp_path / "set", count=100)
    config = digits_config(2)
    config.dataset.name, config.dataset.data_dir = "folder", str(tmp_path / "set")
    config.dataset.val_examples = 30
    config.batch_size, config.total_steps = 30, 12  # an epoch and a half
    unbroken = train(config, tmp_path / "unbroken")
    for steps in (5, 4):
        with pytest.raises(StoppedError):
            train(config, tmp_path / "stopped", StopAfter(steps))
    assert train(config, tmp_path / "stopped")["test_nll"] == unbroken["test_nll"]
    starts = [start["step"] for start in read_json(tmp_path / "stopped" / "provenance.json")]
    assert starts[0] == 0 < starts[1] < starts[2] < 12
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "stopped")
    )
    assert first == second


@pytest.mark.slow
def test_a_folder_of_300_images_trains_and_is_evaluated(tmp_path):
    make_folder(tmp_path / "set", count=100)
    command = (
        "--config=configs/demo.py:teacher", f"--workdir={tmp_path}/run",
        "--config.dataset.name=folder", f"--config.dataset.data_dir={tmp_path}/set",
        "--config.dataset.val_examples=30", "--config.batch_size=30",
        "--config.checkpoint_every_steps=10",
    )  # fmt: skip
    done = run("kd_jax.main", *command, "--config.total_epochs=1")
    assert done.returncode == 0, done.stderr
    # More epochs are another schedule, so another run; the same command measures the finished one.
    assert "config.json" not in done.stderr
    again = run("kd_jax.main", *command, "--config.total_epochs=1")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    longer = run("kd_jax.main", *command, f"--workdir={tmp_path}/long", "--config.total_epochs=8")
    assert longer.returncode == 0, longer.stderr
    result = read_json(tmp_path / "long" / "result.json")
    assert result["test_top1"] > 90
    measured = run("kd_jax.evaluate", f"--workdir={tmp_path}/long", "--split=test")
    assert measured.returncode == 0, measured.stderr
    card = read_json(tmp_path / "long" / "model.json")
    assert card["num_classes"] == 3
    # The normalisation was computed from train, and is kept with the network.
    np.testing.assert_allclose(card["mean"], dataset.load(options(
        name="folder", data_dir=f"{tmp_path}/set", val_examples=30)).mean)  # fmt: skip
