"""Sets of tfds: which one is meant, which parts of it, is it whole; and their images."""

import functools
import json
import shutil
import types

import numpy as np
import pytest

from kd_jax.config import default_config
from kd_jax.data import (
    catalog,
    class_names,
    dataset,
    sources,
    tfds_reader,
    tfds_slices,
    tfds_source,
)
from kd_jax.runtime import memory, quiet_tensorflow
from kd_jax.runtime.errors import UserError
from kd_jax.training import plan


def options(**changes):
    config = default_config().dataset
    config.update(changes)
    return config


def write_info(directory, splits=None, file_format="tfrecord"):
    """Write what says which files a prepared set has; the files themselves are not there."""
    directory.mkdir(parents=True)
    content = {
        "name": directory.parent.name,
        "version": directory.name,
        "fileFormat": file_format,
        "splits": [
            {"name": name, "shardLengths": [str(n) for n in lengths], "numBytes": "1"}
            for name, lengths in (splits or {"train": [60, 40], "test": [20]}).items()
        ],
    }
    (directory / "dataset_info.json").write_text(json.dumps(content))
    (directory / "features.json").write_text("{}")
    return directory


@pytest.fixture
def decoded_from(tmp_path, monkeypatch):
    """Stand in for the decoding; the places that sets were decoded from."""
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    seen = []

    def decode(name, place, wanted, image_size):
        seen.append(place)
        read = [
            sources.Split(np.full((count, 32, 32, 3), 7, np.uint8), np.arange(count) % 4)
            for _, count in wanted
        ]
        return sources.Source(*read, 100)

    monkeypatch.setattr(tfds_reader, "decode", decode)
    return seen


# Parts

SHARDS = {"train": [60, 40], "test": [20], "validation": [30]}


@pytest.mark.parametrize(("train", "test", "shared"), [
    ("train", "train[80%:]", "share 20 of the 100"),
    ("train[:80%]", "train[79%:]", "share 1 of the 100"),
    ("train[:-10]", "train[85:]", "share 5 of"),
    ("train[:1shard]", "train[50%:]", "share 10 of"),
    ("train[-30:]", "train[70%:71%]", "share 1 of"),
    ("train[:50]+test", "validation+test[10:]", "share 10 of the 20"),
    ("train[:50]+train[60%:]", "train[50:61]", "share 1 of"),
    ("all", "test", "share 20 of"),
    ("test[:10]", "test[9:]", "share 1 of"),
    ("train[:1%]", "train[:100%]", "share 1 of"),
    ("train[:60%]+train[50%:]", "test", "train_split is .* 10 examples of train twice"),
    ("train", "test+test[:1]", "test_split is .* 1 examples of test twice"),
    ("train+train", "test", "100 examples of train twice"),
])  # fmt: skip
def test_parts_that_overlap_are_refused(train, test, shared):
    with pytest.raises(UserError, match=shared):
        tfds_slices.check({"train_split": train, "test_split": test}, SHARDS)


@pytest.mark.parametrize(("train", "test", "sizes"), [
    ("train", "test", (100, 20)),
    ("train[:80%]", "train[80%:]", (80, 20)),
    ("train[:-10]", "train[-10:]", (90, 10)),
    ("train[10:20]+train[30:40]", "train[20:30]", (20, 10)),
    ("train[:1shard]", "train[1shard:]", (60, 40)),
    ("train[0shard]", "train[60%:]", (60, 40)),
    ("train[:33.3%]+validation", "train[34:]+test", (63, 86)),
    ("train + validation", "test", (130, 20)),
    ("test", "train", (20, 100)),
])  # fmt: skip
def test_parts_that_do_not_are_counted(train, test, sizes):
    counted = tfds_slices.check({"train_split": train, "test_split": test}, SHARDS)
    assert tuple(counted.values()) == sizes


@pytest.mark.parametrize(("spec", "says"), [
    ("tests", r"Unknown split 'tests'.* expected one of train \(100\), test \(20\)"),
    ("test[", "expected one of"),
    ("test[:1.5]", "expected one of"),
    ("test[:120%]", "expected one of"),
    ("test[:21]", "incompatible with 20 examples"),
    ("test[10%:15]", "has a unit on one side only"),
    ("test[5:5]", "chooses no example"),
    ("test[9:3]", "chooses no example"),
    ("test[:0%]", "chooses no example"),
    ("test[:50%][:50%]", "expected one of"),
    ("+", "expected one of"),
])  # fmt: skip
def test_parts_that_are_none_are_one_sentence(spec, says):
    with pytest.raises(UserError, match=says):
        tfds_slices.check({"train_split": "train", "test_split": spec}, SHARDS)


def test_overlap_is_refused_before_anything_is_read(tmp_path, decoded_from):
    write_info(tmp_path / "cifar100" / "3.0.2")
    with pytest.raises(UserError, match="share 20 of the 100 examples of train"):
        dataset.load(options(data_dir=str(tmp_path), test_split="train[80%:]"))
    assert not decoded_from


# Which set


def test_a_version_in_the_name_is_that_version(tmp_path, decoded_from):
    for version in ("3.0.2", "3.0.10", "2.1.0"):
        write_info(tmp_path / "cifar100" / version)
    chosen = {
        "cifar100": "3.0.10", "cifar100:3.0.2": "3.0.2", "cifar100/2.1.0": "2.1.0",
        "cifar100:3.*.*": "3.0.10", "cifar100:2.*.*": "2.1.0",
    }  # fmt: skip
    for name, version in chosen.items():
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        loaded = dataset.load(options(name=name, data_dir=str(tmp_path), val_examples=9))
        assert decoded_from[-1] == tmp_path / "cifar100" / version
        # It is the same set: its normalisation, its class names and its plan are known.
        assert loaded.name == "cifar100"
        assert loaded.mean == catalog.facts("cifar100").mean
        assert len(class_names.of(options(name=name))) == 100
    config = default_config()
    config.dataset.name = "cifar100:3.0.2"
    assert plan._size_of_data(config)[0] == 45_000


def test_a_config_of_a_set_is_part_of_its_name(tmp_path, decoded_from):
    write_info(tmp_path / "odd" / "small" / "1.0.0")
    write_info(tmp_path / "odd" / "large" / "1.0.0")
    for name in ("odd/small", "odd/small:1.0.0"):
        sources.read(options(name=name, data_dir=str(tmp_path)))
        assert decoded_from[-1] == tmp_path / "odd" / "small" / "1.0.0"
    with pytest.raises(
        UserError, match=r"its configs large, small: give config.dataset.name=odd/l"
    ):
        sources.read(options(name="odd", data_dir=str(tmp_path)))


@pytest.mark.parametrize(("found", "says"), [
    ("other", r"no version 3.0.2 of cifar100 .*, only 3.0.1: give .*name=cifar100:3.0.1, or let"),
    ("3.0.2.incompleteABC", r"/3.0.2.incompleteABC was begun and not finished; remove it"),
    ("incomplete.ABC123_3.0.2", r"/incomplete.ABC123_3.0.2 was begun and not finished; remove it"),
    ("no info", r"cifar100/3.0.2 has no dataset_info.json: it was not prepared or not copied"),
    ("no features", r"cifar100/3.0.2 has no features.json"),
    ("damaged", r"dataset_info.json is not what tfds writes \(JSONDecodeError"),
    ("other json", r"dataset_info.json is not what tfds writes"),
    ("no splits", r"dataset_info.json names no split with examples"),
    ("nothing", r"no data set cifar100 in .*: point config.dataset.data_dir"),
    ("too deep", r"no data set cifar100 in .*/cifar100 \(it is in /.*\): point"),
    ("deeper", r"no data set cifar100 in .*/3.0.2 \(it is in /.*\): point"),
])  # fmt: skip
def test_what_was_found_is_said(found, says, tmp_path, decoded_from):
    place = tmp_path / "cifar100" / "3.0.2"
    directory, info = tmp_path, place / "dataset_info.json"
    if found != "nothing":
        write_info(place)
    if found == "other":
        place.rename(place.with_name("3.0.1"))
    elif "incomplete" in found:
        place.rename(place.with_name(found))
    elif found == "no info":
        info.unlink()
    elif found == "no features":
        (place / "features.json").unlink()
    elif found == "damaged":
        info.write_text(info.read_text()[:50])
    elif found == "other json":
        info.write_text("[1]")
    elif found == "no splits":
        info.write_text('{"splits": []}')
    elif found in ("too deep", "deeper"):
        directory = place.parent if found == "too deep" else place
    with pytest.raises(UserError, match=says):
        sources.read(options(name="cifar100:3.0.2", data_dir=str(directory)))
    assert not decoded_from


@pytest.mark.parametrize("before", ["nothing", "other version", "unfinished", "no info"])
def test_what_is_not_there_is_downloaded_where_that_is_asked_for(
    before, tmp_path, decoded_from, monkeypatch
):
    place, asked = tmp_path / "cifar100" / "3.0.2", []
    if before == "other version":
        write_info(place.with_name("3.0.1"))
    elif before == "unfinished":
        write_info(place.with_name("3.0.2.incompleteABC"))
    elif before == "no info":
        (write_info(place) / "dataset_info.json").unlink()

    def download_and_prepare():
        shutil.rmtree(place, ignore_errors=True)
        write_info(place)

    def builder(name, data_dir):
        asked.append((name, data_dir))
        return types.SimpleNamespace(download_and_prepare=download_and_prepare)

    monkeypatch.setattr(
        quiet_tensorflow, "import_tfds", lambda: types.SimpleNamespace(builder=builder)
    )
    common = {"name": "cifar100:3.0.2", "data_dir": str(tmp_path), "download": True}
    for _ in range(2):  # and not again
        sources.read(options(**common))
        assert asked == [("cifar100:3.0.2", tmp_path)]
    assert decoded_from == [place]


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def builder(name, data_dir):
        raise ConnectionError("no network")

    monkeypatch.setattr(
        quiet_tensorflow, "import_tfds", lambda: types.SimpleNamespace(builder=builder)
    )
    with pytest.raises(UserError, match=r"tfds cannot give cifar100 .*\(ConnectionError: no net"):
        sources.read(options(data_dir=str(tmp_path), download=True))


# Their images


def store(root, tfds, features, splits, signature, file_format, name="odd_set"):
    import tensorflow as tf

    tfds.dataset_builders.store_as_tfds_dataset(
        name, version="1.0.0", features=features, data_dir=root, file_format=file_format,
        split_datasets={
            split: tf.data.Dataset.from_generator(examples, output_signature=signature)
            for split, examples in splits.items()
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def odd_sets(tmp_path_factory):
    """Sets of tfds of images of different sizes, with a split called `validation`.

    Grey ones in two formats of files, and transparent ones.
    """
    tfds = quiet_tensorflow.import_tfds()
    import tensorflow as tf

    root = tmp_path_factory.mktemp("tfds")

    def examples(count, channels):
        rng = np.random.default_rng(count)
        for i in range(count):
            shape = (20 + i % 7, 30 - i % 5, channels)
            pixels = rng.integers(0, 256, shape, np.uint8)
            if channels == 4:
                pixels[:] = (10, 20, 30, 0 if i % 2 else 255)
            yield {"image": pixels, "label": i % 4}

    for place, channels, file_format in (
        ("tfrecord", 1, "tfrecord"), ("array_record", 1, "array_record"), ("alpha", 4, None)
    ):  # fmt: skip
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, channels)),
            "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
        })  # fmt: skip
        signature = {
            "image": tf.TensorSpec((None, None, channels), tf.uint8),
            "label": tf.TensorSpec((), tf.int64),
        }
        splits = {
            name: functools.partial(examples, count, channels)
            for name, count in (("train", 40), ("validation", 12))
        }
        store(root / place, tfds, features, splits, signature, file_format)
    return root


def odd(root, kind, **changes):
    return options(name="odd_set", data_dir=str(root / kind), test_split="validation", **changes)


@pytest.mark.slow
def test_any_set_of_tfds_is_brought_to_one_size_and_three_channels(odd_sets):
    with pytest.raises(UserError, match="images of odd_set differ in size"):
        sources.read(odd(odd_sets, "tfrecord"))
    with pytest.raises(UserError, match=r"test_split is 'test' .* one of train \(40\), validation"):
        sources.read(options(name="odd_set", data_dir=str(odd_sets / "tfrecord"), image_size=16))
    source = sources.read(odd(odd_sets, "tfrecord", image_size=16))
    assert source.num_classes == 4
    assert source.train.images.shape == (40, 16, 16, 3)
    assert source.test.images.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(source.train.images[..., 0], source.train.images[..., 2])
    loaded = dataset.load(odd(odd_sets, "tfrecord", image_size=16, val_examples=8))
    assert len(loaded.train) == 32
    assert 0.4 < loaded.mean[0] < 0.6


@pytest.mark.slow
def test_parts_are_what_they_say(odd_sets):
    whole = sources.read(odd(odd_sets, "tfrecord", image_size=16)).train
    for kind in ("tfrecord", "array_record"):
        config = odd(odd_sets, kind, image_size=16, train_split="train[:25%]+train[-5:]")
        part = sources.read(config).train
        np.testing.assert_array_equal(part.images, whole.images[[*range(10), *range(35, 40)]])


@pytest.mark.slow
def test_array_records_give_the_very_same_arrays(odd_sets):
    both = [sources.read(odd(odd_sets, kind, image_size=16)) for kind in
            ("tfrecord", "array_record")]  # fmt: skip
    assert both[0].fingerprint() == both[1].fingerprint()


@pytest.mark.slow
def test_transparent_images_of_a_set_are_laid_on_white(odd_sets):
    train = sources.read(odd(odd_sets, "alpha", image_size=16)).train
    for image, label in zip(train.images, train.labels, strict=True):
        assert (image == ([10, 20, 30] if label % 2 == 0 else 255)).all()


@pytest.mark.slow
def test_a_set_beyond_memory_is_refused_before_it_is_decoded(odd_sets, monkeypatch):
    monkeypatch.setattr(tfds_reader, "_read", None)
    monkeypatch.setattr(memory, "available", lambda: 2 * 52 * 17 * 17 * 3 - 1)
    with pytest.raises(UserError, match=r"odd_set, 52 images of .* takes 0.0 GB of host memory"):
        sources.read(odd(odd_sets, "tfrecord", image_size=17))


@pytest.mark.slow
@pytest.mark.parametrize("says", [39, 41])
def test_a_set_with_other_examples_than_it_says_is_refused(says, odd_sets, tmp_path):
    shutil.copytree(odd_sets / "tfrecord", tmp_path / "tfrecord")
    (place,) = tmp_path.glob("tfrecord/odd_set/*/")
    info = json.loads((place / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = [str(says)]
    (place / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=rf"Input dataset was expected to contain {says} elements"):
        sources.read(odd(tmp_path, "tfrecord", image_size=16))


@pytest.mark.slow
def test_a_part_that_ends_early_is_refused(odd_sets, monkeypatch):
    whole = tfds_reader._examples
    monkeypatch.setattr(tfds_reader, "_examples", lambda *part: whole(*part).take(39))
    with pytest.raises(UserError, match=r"has 39 examples, .* says 40"):
        sources.read(odd(odd_sets, "tfrecord", image_size=18))


def test_a_name_without_a_version_is_itself():
    for name in ("cifar100", "odd/small", "3d_shapes", "a:b"):
        assert tfds_source.base_name(name) == name
        assert tfds_source.base_name(f"{name}:1.20.3") == name
