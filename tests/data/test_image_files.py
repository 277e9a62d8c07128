"""One image file of any kind and mode: the right bytes, or refused."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps

from kd_jax.data import image_files

RAMP = np.linspace(0, 255, 16 * 12).reshape(16, 12)  # grey, 0 to 255
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1).round().astype(np.uint8)


def grey(values):
    return np.repeat(values.round().astype(np.uint8)[..., None], 3, axis=-1)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels_of(path, size=0):
    return image_files.read(path, size)[0]


def in_mode(mode):
    image = Image.fromarray(COLOURS)
    if mode.startswith("I;16"):
        return Image.fromarray((RAMP * 257).round().astype(">u2" if mode[-1] == "B" else "<u2"))
    if mode == "I":
        return Image.fromarray((RAMP * 257).round().astype(np.int32))
    if mode == "F":
        return Image.fromarray((RAMP / 255).astype(np.float32))
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, COLOURS.tobytes())
    if mode == "PA":
        return image.convert("P").convert("PA")
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "name"), [
    ("I;16", "x.png"), ("I;16", "x.tif"), ("I;16", "x.pgm"), ("I;16", "x.jp2"),
    ("I;16B", "x.tif"), ("I", "x.pgm"), ("L", "x.png"), ("L", "x.tif"),
])  # fmt: skip
def test_grey_is_grey_whatever_its_bits(mode, name, tmp_path):
    image = in_mode(mode) if mode != "L" else Image.fromarray(RAMP.round().astype(np.uint8))
    pixels = pixels_of(saved(tmp_path, image, name))
    np.testing.assert_array_equal(pixels, grey(RAMP))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_grey_of_16_bits_is_scaled_in_little_memory(mode, monkeypatch):
    monkeypatch.setattr(image_files, "_STRIP", 10_000)
    values = np.random.default_rng(0).integers(0, 65_536, (1_000, 1_001))  # strips of 9 rows
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32}[mode]
    image = Image.fromarray(values.astype(kind))
    assert image.mode == mode
    image.format = "PNG"
    image.info["transparency"] = int(values[-1, -1])
    tracemalloc.start()
    scaled = image_files.to_rgb(image)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < values.size  # bytes; and NumPy alone would take 27 a pixel
    expected = np.repeat(np.floor(values / 257 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
    expected[values == values[-1, -1]] = image_files.BACKGROUND
    np.testing.assert_array_equal(np.asarray(scaled), expected)


@pytest.mark.parametrize("value", [-1, 65_536, 2**31 - 1])
def test_values_outside_of_16_bits_are_refused_wherever_they_are(value, monkeypatch):
    monkeypatch.setattr(image_files, "_STRIP", 100)
    values = np.zeros((50, 20), np.int32)
    values[-1, -1] = value
    image = Image.fromarray(values)
    image.format = "PNG"
    with pytest.raises(ValueError, match=r"not in 0\.\.65535"):
        image_files.to_rgb(image)


@pytest.mark.parametrize(("mode", "name", "within"), [
    ("1", "x.png", None), ("L", "x.bmp", None), ("LA", "x.png", None), ("P", "x.gif", None),
    ("PA", "x.tif", None), ("RGB", "x.png", 0), ("RGBA", "x.png", 0), ("RGBX", "x.tif", 0),
    ("CMYK", "x.tif", 1), ("CMYK", "x.jpg", 12), ("YCbCr", "x.tif", 3), ("RGB", "x.webp", 24),
    ("RGB", "x.avif", 24), ("RGB", "x.qoi", 0), ("RGB", "x.tga", 0),
])  # fmt: skip
def test_every_mode_comes_to_the_colours_that_it_shows(mode, name, within, tmp_path):
    image = in_mode(mode)
    pixels = pixels_of(saved(tmp_path, image, name)).astype(int)
    expected = COLOURS if within is not None else np.asarray(image.convert("RGB"))
    assert np.abs(pixels - expected).max() <= (within or 0)


@pytest.mark.parametrize("mode", ["HSV", "RGBa", "La"])
def test_modes_that_no_file_has_are_known_too(mode):
    made = Image.fromarray(COLOURS).convert("LA" if mode == "La" else "RGBA" if mode == "RGBa"
                                            else "RGB").convert(mode)  # fmt: skip
    expected = grey(np.asarray(Image.fromarray(COLOURS).convert("L"))) if mode == "La" else COLOURS
    difference = np.asarray(image_files.to_rgb(made)).astype(int) - expected
    assert np.abs(difference).max() <= (10 if mode == "HSV" else 0)


def test_all_of_pillows_modes_are_tried_here():
    tried = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGBa",
             "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F", "LAB"}  # fmt: skip
    assert set(Image.MODES) == tried


@pytest.mark.parametrize(("mode", "says"), [
    ("I", "integers of 32 bits, and nothing says which of them is white"),
    ("F", "floats, and nothing says which of them is white"),
    ("LAB", r"its colours are L\*a\*b\*"),
])  # fmt: skip
def test_pixels_without_a_scale_are_refused(mode, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        pixels_of(saved(tmp_path, in_mode(mode), "x.tif"))


@pytest.mark.parametrize("tag", [{258: 12}, {262: 0}])
def test_grey_of_12_bits_or_with_0_for_white_is_not_taken_for_16(tag, tmp_path):
    # Pillow gives both as I;16 and scales neither.
    path = saved(tmp_path, in_mode("I;16"), "x.tif")
    content = bytearray(path.read_bytes())
    for number, value in tag.items():
        entry = content.index(number.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00")
        content[entry + 8 : entry + 10] = value.to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not 16 bits of grey with 0 for black"):
        pixels_of(path)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp", "x.avif"])
def test_an_image_is_turned_as_exif_says(name, tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = saved(tmp_path, Image.fromarray(COLOURS), name, exif=exif)
        with Image.open(path) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        np.testing.assert_array_equal(pixels_of(path), np.asarray(expected))
        assert pixels_of(path).shape[:2] == ((16, 12) if orientation < 5 else (12, 16))


def test_damaged_exif_turns_nothing(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOURS), "x.png", exif=b"Exif\0\0II*\0nonsense")
    np.testing.assert_array_equal(pixels_of(path), COLOURS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "I;16"])
def test_what_is_transparent_is_white(mode, tmp_path):
    left, half = np.s_[:, :4], np.s_[:, 4:8]
    alpha = np.full(RAMP.shape, 255, np.uint8)
    alpha[left], options = 0, {}
    values = np.full(RAMP.shape, 100, np.uint8)
    if mode in ("RGBA", "LA"):
        alpha[half] = 51  # a fifth of 100, four fifths of 255
        image = Image.merge(mode, [Image.fromarray(values)] * (len(mode) - 1)
                            + [Image.fromarray(alpha)])  # fmt: skip
    elif mode == "I;16":
        wide = values.astype(np.uint16) * 257
        wide[left] = 7
        image, options = Image.fromarray(wide), {"transparency": 7}
    else:  # one value stands for what is seen through
        values[left] = 7
        image = Image.fromarray(values).convert(mode)
        options = {"transparency": (7, 7, 7) if mode == "RGB" else 7}
    pixels = pixels_of(saved(tmp_path, image, "x.png", **options))
    assert (pixels[left] == 255).all()
    assert (pixels[:, 8:] == 100).all()
    if mode in ("RGBA", "LA"):
        np.testing.assert_allclose(pixels[half], 224, atol=1)


@pytest.mark.parametrize(("name", "options"), [
    ("x.gif", {}), ("x.png", {}), ("x.webp", {"lossless": True}), ("x.tif", {}),
])  # fmt: skip
def test_the_first_image_of_several_is_read_and_the_others_are_told(name, options, tmp_path):
    others = [Image.new("RGB", (12, 16), "red")]
    first = Image.fromarray(grey(RAMP))
    path = saved(tmp_path, first, name, save_all=True, append_images=others, **options)
    pixels, several, _ = image_files.read(path, 0)
    assert several
    np.testing.assert_array_equal(pixels, grey(RAMP))
    assert not image_files.read(saved(tmp_path, first, f"one-{name}", **options), 0)[1]


@pytest.mark.parametrize("name", [
    "x.png", "x.jpg", "x.gif", "x.webp", "x.tif", "x.bmp", "x.ppm", "x.jp2", "x.avif", "x.tga",
])  # fmt: skip
def test_a_file_that_is_cut_short_is_whole_or_refused(name, tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOURS), name)
    content, whole = path.read_bytes(), pixels_of(path)
    refused = 0
    for share in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        try:
            pixels = pixels_of(path)
        except Exception:  # Pillow raises many kinds
            refused += 1
        else:  # what is missing is behind the image
            np.testing.assert_array_equal(pixels, whole)
    assert refused >= 5


def test_a_file_is_what_it_holds_not_what_it_is_called(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOURS), "x.png")
    np.testing.assert_array_equal(pixels_of(path.rename(tmp_path / "x.jpg")), COLOURS)
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(OSError, match="cannot identify"):  # Ghostscript would run it
        pixels_of(tmp_path / "x.png")


def test_the_shape_is_told_without_decoding(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOURS), "x.png")
    path.write_bytes(path.read_bytes()[:60])
    assert image_files.shape(path, 0) == (16, 12, 3)
    assert image_files.shape(path, 24) == (24, 24, 3)
