"""Data: what is published, split without leaks, counted once."""

import re
import shutil

import numpy as np
import pytest

from kd_jax.config import checks, default_config
from kd_jax.data import catalog, dataset, sources, tfds_reader
from kd_jax.runtime import quiet_tensorflow
from kd_jax.runtime.errors import UserError


def options(**changes):
    config = default_config().dataset
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def digits():
    return dataset.load(options(name="digits", val_examples=144))


def test_digits_are_all_there_and_nothing_is_in_two_splits(digits):
    sizes = [len(digits.split(name)) for name in ("train", "val", "test")]
    assert sizes == [1293, 144, 360]
    for name in ("train", "val", "test"):
        split = digits.split(name)
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (32, 32, 3)
        assert split.labels.dtype == np.int32
    images = np.concatenate([digits.split(name).images for name in ("train", "val", "test")])
    assert len(np.unique(images.reshape(1797, -1), axis=0)) >= 1797 - 1  # scikit-learn's own twins


def test_splits_are_stratified(digits):
    for name in ("val", "test"):
        counts = np.bincount(digits.split(name).labels, minlength=10)
        assert counts.max() - counts.min() <= 2


def test_statistics_are_of_the_training_split(digits):
    pixels = digits.train.images / 255.0
    np.testing.assert_allclose(digits.mean, pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(digits.std, pixels.std((0, 1, 2)))


def test_stratified_choice_is_reproducible_and_proportional():
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 100])
    chosen = dataset.stratified_indices(labels, 21, seed=3)
    assert len(np.unique(chosen)) == 21
    np.testing.assert_array_equal(chosen, dataset.stratified_indices(labels, 21, seed=3))
    assert not np.array_equal(chosen, dataset.stratified_indices(labels, 21, seed=4))
    counts = np.bincount(labels[chosen])
    np.testing.assert_allclose(counts, np.array([10, 20, 30, 40, 100]) * 21 / 200, atol=1)


@pytest.mark.parametrize(("wanted", "held_out"), [(144, 144), (0.1, 144), (0.0001, 1), (1.0, 1)])
def test_a_hold_out_is_a_count_or_a_share_of_train(wanted, held_out):
    loaded = dataset.load(options(name="digits", val_examples=wanted))
    assert (len(loaded.train), len(loaded.val)) == (1437 - held_out, held_out)


@pytest.mark.parametrize("wanted", [1437, 0.9999])
def test_too_large_a_hold_out_is_one_sentence(wanted):
    with pytest.raises(UserError, match=f"is {wanted}, but digits has only 1437 training examples"):
        dataset.load(options(name="digits", val_examples=wanted))


@pytest.mark.parametrize(("train", "test", "says"), [
    ((50, 32, 9), (9, 32, 10), "the test split of digits has labels outside 0..9"),
    ((50, 32, -1), (9, 32, 9), "the train split of digits has labels outside 0..9"),
    ((50, 32, 9), (0, 32, 0), "the test split of digits has .* no example at all"),
    ((50, 28, 9), (9, 28, 9), r"images of shape \(28, 28, 3\), expected \(32, 32, 3\)"),
])  # fmt: skip
def test_a_set_that_is_not_what_it_claims(train, test, says, monkeypatch):
    def split(count, size, label):
        images = np.zeros((count, size, size, 3), np.uint8)
        return dataset.Split(images, np.full(count, label, np.int32))

    source = sources.Source(split(*train), split(*test), 10)
    monkeypatch.setattr(sources, "digits", lambda: source)
    with pytest.raises(UserError, match=says):
        dataset.load(options(name="digits", val_examples=10))


def test_a_missing_set_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=rf"no data set cifar100 in {tmp_path}"):
        dataset.load(options(data_dir=str(tmp_path)))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=rf"in {tmp_path}/elsewhere"):
        dataset.load(options())


@pytest.mark.slow
def test_a_damaged_set_is_one_sentence(cifar100_dir, tmp_path):
    folder = tmp_path / "cifar100" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "cifar100-train.tfrecord-00000-of-00001").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cifar100/3.0.2 has no dataset_info.json"):
        dataset.load(options(data_dir=str(tmp_path)))
    for name in ("dataset_info.json", "features.json"):
        shutil.copy(cifar100_dir / "cifar100" / "3.0.2" / name, folder)
    with pytest.raises(UserError, match="tfds cannot give cifar100"):
        dataset.load(options(data_dir=str(tmp_path)))


@pytest.fixture(scope="module")
def cifar100(cifar100_dir):
    return dataset.load(options(data_dir=str(cifar100_dir)))


def test_cifar100_is_the_published_one(cifar100):
    assert [len(cifar100.split(s)) for s in ("train", "val", "test")] == [45000, 5000, 10000]
    assert cifar100.num_classes == 100
    assert (np.bincount(cifar100.val.labels) == 50).all()
    assert (np.bincount(cifar100.test.labels) == 100).all()
    both = np.concatenate([cifar100.train.images, cifar100.val.images]) / np.float32(255)
    mean = both.mean((0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(mean, (0.50707516, 0.48654887, 0.44091784), atol=1e-6)


def test_the_cache_gives_the_same_arrays(cifar100, cifar100_dir, monkeypatch):
    def broken(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(tfds_reader, "decode", broken)
    again = dataset.load(options(data_dir=str(cifar100_dir)))
    assert again.fingerprint == cifar100.fingerprint


def test_cifar100_has_the_fingerprint_of_earlier_versions(cifar100):
    # Or runs of theirs could not be resumed, and certificates would be of other data.
    assert cifar100.fingerprint.startswith("6b33e1830fd2d2e295f668b9040bb8e3")


@pytest.mark.slow
def test_superclasses_are_the_coarse_labels_of_the_data(cifar100_dir):
    builder = quiet_tensorflow.import_tfds().builder("cifar100", data_dir=cifar100_dir)
    test = next(iter(builder.as_dataset(split="test", batch_size=10_000)))
    facts = catalog.facts("cifar100")
    names, groups = facts.superclass_names, facts.superclass_of
    assert len(names) == 20
    np.testing.assert_array_equal(np.asarray(groups)[test["label"]], test["coarse_label"])


def test_half_of_test_as_validation_leaves_all_of_train():
    held_out = dataset.load(options(name="digits", val_examples=144))
    halved = dataset.load(options(name="digits", validation="half_of_test"))
    assert len(halved.train) == len(held_out.train) + 144
    assert len(halved.val) == len(halved.test) // 2
    seen = {image.tobytes() for image in halved.test.images}
    assert all(image.tobytes() in seen for image in halved.val.images)


@pytest.mark.parametrize(("field", "value"), [
    ("train_split", "train[:50%]"), ("test_split", "validation"), ("image_size", 16),
])  # fmt: skip
def test_what_the_digits_have_no_use_for_is_refused(field, value):
    config = default_config()
    config.distill.label_weight = 1.0
    config.dataset.name = "digits"
    checks.check(config)
    config.dataset[field] = value
    with pytest.raises(UserError, match=rf"dataset.{field} is {re.escape(repr(value))}, expected"):
        checks.check(config)
