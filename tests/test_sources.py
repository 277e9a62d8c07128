"""Folders of images and any set of tfds: read whole, or refused with a sentence."""

import functools

import numpy as np
import pytest
from PIL import Image

from helpers import run
from kd_jax import data, sources, tf_quietly
from kd_jax.config import default_config
from kd_jax.errors import UserError
from kd_jax.files import read_json
from kd_jax.interrupt import StoppedError
from kd_jax.train import train
from training import StopAfter, digits_config


def options(**changes):
    config = default_config().dataset
    config.update(changes)
    return config


def make_folder(root, *, count=100, size=(32, 32), test=False, classes=("ant", "bee", "über")):
    """Write images whose colour tells their class; return how many."""
    rng = np.random.default_rng(0)
    written = 0
    for split, number in (("train", count), ("test", count // 4 if test else 0)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = rng.integers(0, 120, (*size, 3), np.uint8)
                pixels[..., label % 3] += 120
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
                written += 1
    if not test:
        for name in classes:
            (root / "test" / name).rmdir()
        (root / "test").rmdir()
    return written


def folder(root, **changes):
    return sources.read(options(name="folder", data_dir=str(root), **changes))


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


def test_images_of_any_size_and_kind_are_brought_to_one(tmp_path):
    make_folder(tmp_path, count=5)
    Image.new("L", (50, 41), 7).save(tmp_path / "train" / "ant" / "grey.jpg")
    Image.new("RGBA", (20, 64), (9, 9, 9, 255)).save(tmp_path / "train" / "bee" / "tall.PNG")
    with pytest.raises(UserError, match=r"grey.jpg has 41 x 50 .* give config"):
        folder(tmp_path)
    source = folder(tmp_path, image_size=24)
    assert source.train.images.shape[1:] == (24, 24, 3)
    assert len(source.train) + len(source.test) == 17


def spoil(root, how):
    if how == "unreadable":
        (root / "train" / "bee" / "x.png").write_bytes(b"no image")
    elif how == "huge":
        Image.new("1", (13_400, 13_400)).save(root / "train" / "bee" / "x.png")
    elif how == "cut short":
        path = root / "train" / "bee" / "0.png"
        path.write_bytes(path.read_bytes()[:200])
    elif how == "one class":
        for name in ("bee", "über"):
            for path in (root / "train" / name).iterdir():
                path.unlink()
            (root / "train" / name).rmdir()
    elif how == "unknown class":
        (root / "test" / "wasp").mkdir(parents=True)
    elif how == "no images":
        for path in root.glob("train/*/*"):
            path.rename(path.with_suffix(".txt"))
    elif how == "no train":
        (root / "train").rename(root / "training")


@pytest.mark.parametrize(("how", "says"), [
    ("unreadable", r"bee/x.png cannot be read as an image"),
    ("cut short", r"bee/0.png cannot be read as an image"),
    ("one class", r"has 1 class\(es\)"),
    ("unknown class", r"test/wasp is of a class that train has not"),
    ("no images", r"train has no image"),
    ("huge", r"x.png cannot be read as an image"),
    ("no train", r"there is no directory .*/train: expected"),
])  # fmt: skip
def test_a_folder_that_is_not_one_is_one_sentence(how, says, tmp_path):
    make_folder(tmp_path, count=3)
    spoil(tmp_path, how)
    with pytest.raises(UserError, match=says):
        folder(tmp_path)


def test_a_damaged_cache_is_decoded_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    make_folder(tmp_path / "set", count=5)
    fingerprint = folder(tmp_path / "set").fingerprint()
    (kept,) = (tmp_path / "cache" / "data").iterdir()
    images = np.load(kept / "train_images.npy")
    images[0] += 1
    np.save(kept / "train_images.npy", images)
    assert folder(tmp_path / "set").fingerprint() == fingerprint
    np.testing.assert_array_equal(np.load(kept / "train_images.npy")[0], images[0] - 1)
    (kept / "train_images.npy").write_bytes(b"")
    assert folder(tmp_path / "set").fingerprint() == fingerprint
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]  # nothing is left behind


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
    np.testing.assert_allclose(card["mean"], data.load(options(
        name="folder", data_dir=f"{tmp_path}/set", val_examples=30)).mean)  # fmt: skip


@pytest.fixture(scope="module")
def odd_set(tmp_path_factory):
    """A set of tfds of grey images of different sizes, with a split called `validation`."""
    tfds = tf_quietly.import_tfds()
    import tensorflow as tf

    root = tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)

    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 1)),
        "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
    })  # fmt: skip

    def examples(count):
        for i in range(count):
            pixels = rng.integers(0, 256, (20 + i % 7, 30 - i % 5, 1), np.uint8)
            yield {"image": pixels, "label": i % 4}

    signature = {
        "image": tf.TensorSpec((None, None, 1), tf.uint8), "label": tf.TensorSpec((), tf.int64)
    }  # fmt: skip
    splits = {
        name: tf.data.Dataset.from_generator(
            functools.partial(examples, count), output_signature=signature
        )
        for name, count in (("train", 40), ("validation", 12))
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        "odd_set", version="1.0.0", features=features, data_dir=root,
        split_datasets=splits,
    )  # fmt: skip
    return root


@pytest.mark.slow
def test_any_set_of_tfds_is_brought_to_one_size_and_three_channels(odd_set, monkeypatch):
    common = {"name": "odd_set", "data_dir": str(odd_set), "test_split": "validation"}
    with pytest.raises(UserError, match="images of odd_set differ in size"):
        sources.read(options(**common))
    with pytest.raises(UserError, match="test_split is 'test', but odd_set has train, validation"):
        sources.read(options(name="odd_set", data_dir=str(odd_set), image_size=16))
    source = sources.read(options(**common, image_size=16))
    assert source.num_classes == 4
    assert source.train.images.shape == (40, 16, 16, 3)
    assert source.test.images.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(source.train.images[..., 0], source.train.images[..., 2])
    loaded = data.load(options(**common, image_size=16, val_examples=8))
    assert len(loaded.train) == 32
    assert 0.4 < loaded.mean[0] < 0.6
