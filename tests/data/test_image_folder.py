"""Folders as people have them: each image once, in its class and split, or one sentence."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from image_folders import folder, make_folder, options
from kd_jax.data import class_names, dataset, image_folder, sources
from kd_jax.runtime import caches, memory
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """A folder of 8 training and 2 test images for each of ant, bee and über."""
    make_folder(tmp_path / "set", count=8, size=(8, 8), test=True)
    return tmp_path / "set"


@pytest.fixture
def said(caplog, monkeypatch):
    """What was logged."""
    monkeypatch.setattr(logger, "propagate", True)
    return caplog


def labels_of(split):
    """The class that make_folder's colours tell."""
    return split.images.mean((1, 2)).argmax(1)


def moved(path, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
    return to


# The cache, and what tells one data set from another


def test_a_link_that_moves_to_another_class_is_another_data_set(root, tmp_path):
    shutil.copytree(root / "train" / "ant", tmp_path / "store")
    for path in (root / "train" / "ant").iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "store" / path.name)
    before = folder(root)
    moved(root / "train/ant/7.png", root / "train/bee/00.png")  # flat, the order of files stays
    after = folder(root)
    assert before.fingerprint() != after.fingerprint()
    np.testing.assert_array_equal(np.bincount(after.train.labels), [7, 9, 8])
    np.testing.assert_array_equal(np.bincount(before.train.labels), [8, 8, 8])


def test_two_splits_whose_boundary_moved_are_another_data_set(tmp_path):
    store, root = tmp_path / "store", tmp_path / "set"
    make_folder(store, count=6, size=(8, 8))
    for name in ("ant", "bee"):
        for split, files in (("train", range(4)), ("test", range(4, 6))):
            (root / split / name).mkdir(parents=True)
            for i in files:
                (root / split / name / f"{i}.png").symlink_to(store / f"train/{name}/{i}.png")
    before = folder(root)
    moved(root / "train/bee/3.png", root / "test/ant/0.png").unlink()
    (root / "test/ant/0.png").symlink_to(store / "train/bee/3.png")
    after = folder(root)
    assert (len(before.train), len(before.test)) == (8, 4)
    assert (len(after.train), len(after.test)) == (7, 5)
    assert before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize("value", [0, 9])
def test_the_fingerprint_knows_shapes_where_bytes_are_alike(value):
    def source(train, test, height=4, width=4):
        return sources.Source(*(
            sources.Split(np.full((n, height, width, 3), value, np.uint8), np.zeros(n, np.int32))
            for n in (train, test)
        ), 2)  # fmt: skip

    alike = [source(5, 2), source(4, 3), source(3, 4), source(5, 2, 2, 8)]
    assert len({one.fingerprint() for one in alike}) == len(alike)
    assert source(5, 2).fingerprint() == source(5, 2).fingerprint()


def test_files_that_change_names_or_targets_are_decoded_anew(root):
    same = 1_600_000_000
    for name in ("0", "1"):
        Image.new("RGB", (8, 8), "red" if name == "0" else "lime").save(root / f"{name}.bmp")
        os.utime(root / f"{name}.bmp", (same, same))  # equal sizes and times
    link = root / "train/ant/0.bmp"
    link.symlink_to(root / "0.bmp")
    first = [folder(root).train.images[0, 0, 0].tolist()]
    link.unlink()
    link.symlink_to(root / "1.bmp")
    first.append(folder(root).train.images[0, 0, 0].tolist())
    moved(root / "0.bmp", root / "x.bmp")
    moved(root / "1.bmp", root / "0.bmp")
    moved(root / "x.bmp", root / "1.bmp")
    first.append(folder(root).train.images[0, 0, 0].tolist())
    assert first == [[255, 0, 0], [0, 255, 0], [255, 0, 0]]


def test_an_unchanged_folder_is_not_decoded_again(root, monkeypatch):
    before = folder(root)
    monkeypatch.setattr(image_folder, "_decode", None)
    assert folder(root).fingerprint() == before.fingerprint()


def test_ordinary_folders_keep_the_fingerprint_of_earlier_versions(tmp_path):
    # Names, order, hold-out and bytes: what 9ee04c1 gave for these very files.
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("Zoo", "ant", "über")):
            for i in range(count):
                place = tmp_path / split / name / ("sub" if i == 1 else "")
                place.mkdir(parents=True, exist_ok=True)
                pixels = np.arange(6 * 5 * 3).reshape(6, 5, 3) * (label + 1) + i + 50 * (count == 1)
                Image.fromarray((pixels % 256).astype(np.uint8)).save(place / f"{i}.PNG")
    assert folder(tmp_path).fingerprint() == EARLIER_WITH_TEST
    shutil.rmtree(tmp_path / "test")
    assert folder(tmp_path).fingerprint() == EARLIER_WITHOUT_TEST


EARLIER_WITH_TEST = "5e90397ec1f988b9f28a71f564063d0cab74b2febd1a86705b1bbcad2b42b1bd"
EARLIER_WITHOUT_TEST = "416c10716dc6cc48fab288f416550df54f62009c5dfa8b7742a934adf64fcc04"


# Names, links and kinds


def test_hidden_names_are_no_classes_and_no_images(root, said):
    before = folder(root).fingerprint()
    assert "passed over" not in said.text
    for place in ("train", "test", "train/ant", "train/bee/deeper"):
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (root / place / name).mkdir(parents=True)
            shutil.copy(root / "train/bee/0.png", root / place / name / "copy.png")
        (root / place / "._0.png").write_bytes(b"\0\5\26\7no image")
        (root / place / ".DS_Store").write_bytes(b"Bud1")
    assert folder(root).fingerprint() == before
    assert f"passed over in {root}: 20 hidden" in said.text
    config = options(name="folder", data_dir=str(root))
    assert class_names.of(config) == ("ant", "bee", "über")


def test_what_is_passed_over_is_counted_by_kind_in_one_line(root, said):
    (root / "train" / "labels.csv").write_text("0,1")
    for name in ("a.txt", "b.TXT", "c.heic", "README"):
        (root / "train" / "ant" / name).write_text("x")
    (root / "test" / "bee" / "gone.png").symlink_to(root / "nothing.png")
    os.mkfifo(root / "test" / "bee" / "pipe.png")
    folder(root)
    (line,) = [r.getMessage() for r in said.records if "passed over" in r.getMessage()]
    for counted in ("2 .txt", "1 .heic", "1 without an ending", "1 links to nothing",
                    "1 neither files nor directories", "1 beside the class "):  # fmt: skip
        assert counted in line


@pytest.mark.parametrize("name", [
    "x.tif", "x.TIFF", "x.WebP", "x.gif", "x.JPG", "x.jpeg", "x.jfif", "x.bmp", "x.PPM", "x.pgm",
    "x.jp2", "x.avif", "x.tga",
])  # fmt: skip
def test_every_kind_that_pillow_reads_is_read(name, root, said):
    Image.new("RGB", (8, 8), "blue").save(root / "train" / "ant" / name)
    source = folder(root)
    assert len(source.train) == 25
    blue = (np.abs(source.train.images.astype(int) - [0, 0, 255]) < 40).all((1, 2, 3))
    grey = np.ptp(source.train.images.astype(int), axis=-1).max((1, 2)) == 0
    assert (blue | (grey if name == "x.pgm" else False)).sum() == 1
    assert "passed over" not in said.text


def test_links_are_followed_to_directories_and_files(root, tmp_path):
    before = folder(root).fingerprint()
    moved(root / "train" / "ant", tmp_path / "elsewhere" / "below")
    (root / "train" / "ant").mkdir()
    (root / "train" / "ant" / "link").symlink_to(tmp_path / "elsewhere" / "below")
    assert folder(root).fingerprint() == before
    moved(root / "train" / "bee", tmp_path / "bees")
    (root / "train" / "bee").symlink_to(tmp_path / "bees")
    moved(root / "test", tmp_path / "tests")
    (root / "test").symlink_to(tmp_path / "tests")
    assert folder(root).fingerprint() == before


def test_links_in_circles_end_and_give_nothing_twice(root, said):
    before = folder(root).fingerprint()
    ant = root / "train" / "ant"
    (ant / "deeper").mkdir()
    for link, target in (("to_itself", "."), ("to_the_split", ".."), ("to_the_set", "../.."),
                         ("deeper/up", ".."), ("again", "deeper")):  # fmt: skip
        (ant / link).symlink_to(target)
    (ant / "one.png").symlink_to("two.png")
    (ant / "two.png").symlink_to("one.png")
    assert folder(root).fingerprint() == before
    assert "5 links to a directory that is read already" in said.text
    assert "2 links to nothing" in said.text


def test_one_image_in_two_classes_or_twice_in_one_is_told(root, said):
    (root / "train/bee/x.png").symlink_to(root / "train/ant/0.png")
    os.link(root / "train/ant/1.png", root / "train/ant/y.png")
    assert len(folder(root).train) == 26
    assert "1 links to an image of another class" in said.text
    assert "1 links to an image of the same class" in said.text


@pytest.mark.parametrize("how", ["empty", "unreadable", "hidden", "dead link"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_an_image_is_refused_by_name(split, how, root):
    place = root / split / "bee"
    for path in place.iterdir():
        if how == "unreadable":
            path.rename(path.with_suffix(".heic"))
        elif how == "hidden":
            path.rename(path.with_name("." + path.name))
        else:
            path.unlink()
    if how == "dead link":
        (place / "images").symlink_to(root / "nothing")
    holds = {
        "empty": "bee:",
        "unreadable": r"bee \(it holds \d \.heic\)",
        "hidden": r"bee \(it holds \d hidden\)",
        "dead link": r"bee \(it holds 1 links to",
    }
    with pytest.raises(UserError, match=rf"{split} has no image of the class {holds[how]}"):
        folder(root)


def test_a_class_that_test_has_not_is_told(root, said):
    shutil.rmtree(root / "test" / "bee")
    assert set(folder(root).test.labels) == {0, 2}
    assert "test has no image of 1 of the 3 classes: bee" in said.text


def test_class_names_are_one_however_unicode_writes_them(root):
    before = folder(root)
    decomposed = unicodedata.normalize("NFD", "über")
    assert decomposed != "über"
    for split in ("train", "test"):  # as a Mac writes them, on one side and then on both
        moved(root / split / "über", root / split / decomposed)
        assert folder(root).fingerprint() == before.fingerprint()
        assert class_names.of(options(name="folder", data_dir=str(root)))[2] == "über"
    shutil.copytree(root / "train" / decomposed, root / "train" / "über")
    with pytest.raises(UserError, match="two directories 'über', which differ only in how Unicode"):
        folder(root)


# Splits


@pytest.mark.parametrize("how", ["same", "inside", "around", "linked", "class", "file", "hard"])
def test_a_test_split_that_shares_images_with_train_is_refused(how, root):
    changes = {}
    if how in ("same", "inside", "around"):
        changes["test_split"] = {"same": "train/.", "inside": "train/ant", "around": "."}[how]
    elif how == "linked":
        shutil.rmtree(root / "test")
        (root / "test").symlink_to(root / "train")
    elif how == "class":
        shutil.rmtree(root / "test" / "ant")
        (root / "test" / "ant").symlink_to(root / "train" / "ant")
    elif how == "file":
        (root / "test/ant/x.png").symlink_to(root / "train/ant/0.png")
    else:
        os.link(root / "train/ant/0.png", root / "test/ant/x.png")
    with pytest.raises(UserError, match=r"overlap|are one file: expected no image to be in both"):
        folder(root, **changes)


@pytest.mark.parametrize("name", ["val", "validation", "Test"])
def test_a_split_beside_train_that_is_not_read_is_pointed_out(name, root, said):
    moved(root / "test", root / name)
    (root / "annotations").mkdir()
    held_out = folder(root)
    assert "no test split: a fifth of train is held out" in said.text
    advice = f"which is not read: to test on it, give config.dataset.test_split={name}"
    assert f"holds {name}, annotations, {advice}" in said.text
    assert len(held_out.test) == 5
    assert len(folder(root, test_split=name).test) == 6


def test_a_further_split_beside_train_and_test_is_pointed_out(root, said):
    shutil.copytree(root / "test", root / "val")
    folder(root)
    assert "holds val besides, which is not read: validation is held out of train" in said.text


def test_a_misspelt_test_split_is_not_taken_for_none(root):
    with pytest.raises(UserError, match=r"test_split is 'tset', .* expected one of test, or"):
        folder(root, test_split="tset")


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "a\0b", "train/ant/0.png", "loop"])
def test_names_that_no_directory_has_are_one_sentence(name, root):
    (root / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="there is no directory"):
        folder(root, test_split=name)
    with pytest.raises(UserError, match="there is no directory"):
        folder(root, train_split=name)
    with pytest.raises(UserError, match="there is no directory"):
        folder(name)
    with pytest.raises(UserError, match="no data set"):
        sources.read(options(name=name, data_dir=str(root)))


def test_splits_may_lie_deeper(root, said):
    moved(root / "train", root / "deeper" / "train")
    moved(root / "test", root / "deeper" / "test")
    source = folder(root, train_split="deeper/train", test_split="deeper/test")
    assert (len(source.train), len(source.test)) == (24, 6)
    assert "not read" not in said.text


# What is refused


def spoil(root, how):
    if how == "unreadable":
        (root / "train" / "bee" / "x.png").write_bytes(b"no image")
    elif how == "huge":
        Image.new("1", (13_400, 13_400)).save(root / "train" / "bee" / "x.png")
    elif how == "cut short":
        path = root / "train" / "bee" / "0.png"
        path.write_bytes(path.read_bytes()[:100])
    elif how == "float":
        Image.fromarray(np.ones((8, 8), np.float32)).save(root / "train" / "bee" / "x.tif")
    elif how == "one class":
        for name in ("bee", "über"):
            shutil.rmtree(root / "train" / name)
    elif how == "unknown class":
        (root / "test" / "wasp").mkdir(parents=True)
    elif how == "no images":
        for path in root.glob("train/*/*"):
            path.rename(path.with_suffix(".txt"))
    elif how == "empty":
        (root / "train" / "bee" / "x.png").touch()
    elif how == "one too deep":
        (root / "train").rename(root / "all")
        moved(root / "all", root / "train" / "all")
    elif how in ("no class", "only images"):
        place = root / "train" if how == "no class" else root
        for path in (root / "train" / "ant").iterdir():
            path.rename(place / path.name)
        for name in (
            "train/ant",
            "train/bee",
            "train/über",
            *(("train", "test") * (place == root)),
        ):
            shutil.rmtree(root / name)
    elif how == "only classes":
        for name in ("ant", "bee", "über"):
            moved(root / "train" / name, root / name)
        for name in ("train", "test"):
            shutil.rmtree(root / name)
    elif how == "other directories":
        (root / "train").rename(root / "other")
        shutil.rmtree(root / "test" / "ant")
    elif how == "nothing":
        shutil.rmtree(root)
        root.mkdir()
    elif how in OTHER_NAMES:
        (root / "train").rename(root / OTHER_NAMES[how])


OTHER_NAMES = {"no train": "training", "capital": "Train", "misspelt": "tarin"}


@pytest.mark.parametrize(("how", "says"), [
    ("unreadable", r"bee/x.png cannot be read as an image"),
    ("cut short", r"bee/0.png cannot be read as an image"),
    ("float", r"bee/x.tif cannot be read as an image \(its pixels are floats"),
    ("empty", r"bee/x.png is empty \(0 bytes\): mend it or take it away"),
    ("one class", r"train has one class, ant: expected at least two classes, each a directory"),
    ("one too deep", r"one class, all: .*its directories \(ant, bee, über\) .*split=train/all"),
    ("no class", r"train holds no directory of a class \(8 beside .* at least two classes"),
    ("unknown class", r"test/wasp is of a class that train has not"),
    ("no images", r"train has no image of the class ant \(it holds 8 .txt\), bee"),
    ("huge", r"x.png cannot be read as an image"),
    ("no train", r"there is no directory .*/train: it holds test, training: if training is "
                 r"meant, give --config.dataset.train_split=training; expected"),
    ("capital", r"it holds Train, test: if Train is meant, give --config.*train_split=Train"),
    ("misspelt", r"it holds tarin, test: if tarin is meant"),
    ("only classes", r"it holds ant, bee, über, with images: if these are the classes, move them "
                     r"into .*set/train; expected"),
    ("only images", r"it holds no directory \(8 beside the class directories\); expected"),
    ("other directories", r"no directory .*/train: it holds other, test; expected"),
    ("nothing", r"no directory .*/train: it holds no directory \(nothing\); expected"),
])  # fmt: skip
def test_a_folder_that_is_not_one_is_one_sentence(how, says, root):
    spoil(root, how)
    with pytest.raises(UserError, match=says):
        folder(root)


def test_a_place_that_is_no_folder_of_splits_is_told_what_it_is(root, tmp_path):
    for data_dir, says in (
        ("", "config.dataset.data_dir is not given: expected --config.dataset.data_dir=DIR, a dir"),
        (root / "train", f"train is that directory itself, with the classes ant, bee, über: give "
                         f"the one that it lies in, --config.dataset.data_dir={root}; expected"),
        (tmp_path / "sett", f"{tmp_path}/sett itself is not there, only {root}; expected"),
        (tmp_path / "a" / "b", f"{tmp_path}/a/b itself is not there; expected"),
        (root / "train/ant/0.png", r"0.png is a file \(an archive has to be unpacked\); expected"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            sources.read(options(name="folder", data_dir=str(data_dir)))


@pytest.mark.parametrize("first_is_broken", [False, True])
def test_all_images_that_cannot_be_read_are_told_at_once(first_is_broken, root, said):
    for number in range(12):
        (root / f"train/bee/{number}.png").write_bytes(b"no image" if number else b"")
    (root / "test/ant/0.png").write_bytes(b"no image")
    if first_is_broken:
        (root / "train/ant/0.png").write_bytes(b"no image")
    count = 13 + first_is_broken
    first = "train/ant/0.png" if first_is_broken else "train/bee/0.png"
    says = rf"{count} of the 34 images in .* \(the first 10 are told above; .* {root}/{first}\)"
    with pytest.raises(UserError, match=says):
        folder(root)
    lines = [record.getMessage() for record in said.records]
    assert len(lines) == 10
    assert f"{root}/train/bee/0.png is empty (0 bytes): mend it or take it away" in lines
    assert (
        f"{root}/train/bee/1.png cannot be read as an image (it begins as no kind of image that "
        "Pillow reads): mend it or take it away" in lines
    )
    assert not list(caches.directory("data").rglob("about.json"))


def test_images_of_any_size_and_kind_are_brought_to_one(tmp_path):
    make_folder(tmp_path, count=5)
    Image.new("L", (50, 41), 7).save(tmp_path / "train" / "ant" / "grey.jpg")
    Image.new("RGBA", (20, 64), (9, 9, 9, 255)).save(tmp_path / "train" / "bee" / "tall.PNG")
    with pytest.raises(UserError, match=r"grey.jpg has 41 x 50 .* give config"):
        folder(tmp_path)
    source = folder(tmp_path, image_size=24)
    assert source.train.images.shape[1:] == (24, 24, 3)
    assert len(source.train) + len(source.test) == 17


def test_files_with_several_images_are_told(root, said):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(root / "train/ant/x.gif", save_all=True, append_images=frames[1:])
    folder(root)
    assert "1 files in " in said.text
    assert "hold several images: the first of each is read" in said.text


@pytest.mark.parametrize(("size", "needed"), [(0, 8 * 8 * 3), (100, 100 * 100 * 3)])
def test_a_folder_beyond_memory_is_refused_before_it_is_decoded(size, needed, root, monkeypatch):
    monkeypatch.setattr(image_folder, "_decode", None)
    monkeypatch.setattr(memory, "available", lambda: 2 * 30 * needed - 1)
    with pytest.raises(UserError, match=r"30 images, takes 0.0 GB .* is available: take a smaller"):
        folder(root, image_size=size)
    monkeypatch.undo()


def test_a_kept_set_beyond_memory_is_refused_before_it_is_read(root, monkeypatch):
    folder(root)
    monkeypatch.setattr(np, "load", None)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(UserError, match=r"the data set in .*cache/data/folder-"):
        folder(root)


# What is said of it at the start


def load(root, **changes):
    return dataset.load(options(name="folder", data_dir=str(root), val_examples=0.1, **changes))


def test_what_was_read_is_said_and_again_from_the_cache(root, said):
    Image.new("RGB", (31, 20)).save(root / "train/ant/small.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (300, 400)).save(root / "train/ant/large.jpg", exif=turned)
    (root / "train/bee/0.png").unlink()
    (root / "train/notes.txt").write_text("no image")
    lines = (
        f"{root}: 3 classes, 31 images of 8 x 8 to 400 x 300 pixels, brought to 16 x 16; 9 (bee) "
        "to 12 (ant) of each class",
        "23 to train on, 2 for validation, 6 to test on",
        f"passed over in {root}: 1 beside the class directories",
    )
    said.set_level("INFO")
    for _ in range(2):
        said.clear()
        loaded = load(root, image_size=16)
        assert [len(loaded.split(name)) for name in ("train", "val", "test")] == [23, 2, 6]
        for line in lines:
            assert line in said.text


def test_images_of_one_size_are_said_to_be_so(root, said):
    said.set_level("INFO")
    shutil.rmtree(root / "test")
    load(root)
    assert "24 images of 8 x 8 pixels; 8 of each class" in said.text
    assert "17 to train on, 2 for validation, 5 to test on" in said.text


def test_a_kept_set_from_before_sizes_were_kept_is_read(root, said):
    before = load(root)
    for path in caches.directory("data").rglob("about.json"):
        about = json.loads(path.read_text())
        del about["file_sizes"]
        path.write_text(json.dumps(about))
    said.set_level("INFO")
    assert load(root).fingerprint == before.fingerprint
    assert "3 classes, 30 images; 10 of each class" in said.text
