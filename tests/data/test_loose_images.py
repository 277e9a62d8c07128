"""Images that are named one by one: each is read as a folder's are, or told in a sentence."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from image_folders import folder, make_folder
from kd_jax.data import loose_images
from kd_jax.runtime.console import logger

SIZE = (32, 24)  # height, width
TURNED = Image.Exif()
TURNED[0x0112] = 6


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def write(path, *, mode="RGB", size=(40, 30), **options):
    Image.fromarray(noise(size[1], size[0], 3)).convert(mode).save(path, **options)
    return path


def chunk(kind, content):
    """A piece of a PNG file."""
    head = struct.pack(">I", len(content)) + kind + content
    return head + struct.pack(">I", zlib.crc32(kind + content))


def write_bomb(path):
    """Write a PNG file that claims 400 million pixels in a hundred bytes."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def read(*places, size=SIZE):
    files, (images,) = loose_images.read(loose_images.find(map(str, places)), [size])
    return files, images


def test_files_and_folders_are_found_in_the_order_of_their_names(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    for name in ("set/b.png", "set/deeper/ä.png", "set/a.JPG", "photo", "set/.hidden.png"):
        write(tmp_path / name, format="PNG")
    (tmp_path / "set" / "notes.txt").write_text("no image")
    files = loose_images.find([str(tmp_path / "photo"), str(tmp_path / "set")])
    names = [str(file.path.relative_to(tmp_path)) for file in files]
    assert names == ["photo", "set/a.JPG", "set/b.png", "set/deeper/ä.png"]
    assert not any(file.problem for file in files)
    assert f"passed over in {tmp_path}/set: " in caplog.text
    assert "1 hidden" in caplog.text
    assert "1 .txt" in caplog.text


@pytest.mark.parametrize(("mode", "name", "options"), [
    ("RGBA", "x.png", {}), ("CMYK", "x.jpg", {}), ("L", "x.bmp", {}), ("P", "x.gif", {}),
    ("RGB", "x.gif", {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "red")]}),
    ("RGB", "x.jpg", {"exif": TURNED}), ("RGB", "x.png", {"size": (20_000, 2)}),
    ("RGB", "x.png", {"size": (1, 1)}),
])  # fmt: skip
def test_any_kind_is_brought_to_the_size_of_the_network(mode, name, options, tmp_path):
    path = write(tmp_path / name, mode=mode, **options)
    (file,), images = read(path)
    assert not file.problem
    assert images.shape == (1, *SIZE, 3)
    assert images.dtype == np.uint8
    assert images.std() > 10 or (images.std() == 0 and options.get("size") == (1, 1))  # no blank


def test_images_are_read_as_those_of_a_folder_are_for_training(tmp_path):
    make_folder(tmp_path, count=4, size=(50, 70), test=True)
    trained = folder(tmp_path, image_size=24)
    files, images = read(tmp_path / "train", size=(24, 24))
    assert len(files) == len(trained.train)
    np.testing.assert_array_equal(images, trained.train.images)


def broken(kind, path):
    if kind == "cut":
        content = write(path.with_suffix(".whole"), size=(200, 200), format="PNG").read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return "cannot be read as an image"
    if kind == "text":
        path.write_text("no image")
        return "cannot be read as an image"
    if kind == "empty":
        path.write_bytes(b"")
        return r"is empty \(0 bytes\)"
    if kind == "bomb":
        write_bomb(path)
        return "cannot be read as an image .*decompression bomb"
    if kind == "svg":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
        return "cannot be read as an image"
    if kind == "text bomb":
        content = write(path.with_suffix(".whole"), format="PNG").read_bytes()
        text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 26)))
        path.write_bytes(content[:33] + text + content[33:])
        return "cannot be read as an image .*too large"
    if kind == "floats":
        Image.fromarray(np.ones((9, 9), np.float32)).save(path, format="TIFF")
        return "cannot be read as an image .*nothing says which of them is white"
    if kind == "pipe":
        os.mkfifo(path)  # and nobody writes: to open it would be to wait for ever
        return "is neither a file nor a directory"
    if kind == "directory":
        path.mkdir()
        (path / "notes.txt").write_text("no image")
        return r"has no image \(it holds 1 .txt\)"
    if kind == "link":
        path.symlink_to(path.with_suffix(".gone"))
    return "there is no "


@pytest.mark.parametrize("kind", [
    "cut", "text", "empty", "bomb", "svg", "text bomb", "floats", "pipe", "directory", "link",
    "absent",
])  # fmt: skip
def test_what_cannot_be_read_is_told_and_the_others_go_on(kind, tmp_path, recwarn):
    first, last = write(tmp_path / "1.png"), write(tmp_path / "3.png", size=(9, 90))
    says = broken(kind, tmp_path / "2.png")
    files, images = read(first, tmp_path / "2.png", last)
    assert [bool(file.problem) for file in files] == [False, True, False]
    assert f"{tmp_path}/2.png" in files[1].problem
    assert "\n" not in files[1].problem
    assert re.search(says, files[1].problem), files[1].problem
    assert images.shape == (2, *SIZE, 3)
    assert not recwarn.list
