"""One image file as RGB bytes, whatever kind and mode it is."""

from __future__ import annotations

import contextlib
import functools
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from kd_jax.runtime.errors import UserError

# Formats of Pillow that need another program or a handler, or are no images of pixels.
_LEFT_OUT = ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF")
# Where a second image is another moment or page. (Of an MPO it is the same, seen anew.)
_OF_SEVERAL = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
BACKGROUND = (255, 255, 255)  # seen through transparent pixels: white, as on a page
_STRIP = 1 << 18  # pixels that are scaled from 16 bits at a time
_ORIENTATION = 0x0112  # the tag of EXIF


class TooManyPixelsError(ValueError):
    """An image is larger than is allowed."""


class Decoded(NamedTuple):
    """An image as `read` gives it.

    Attributes:
      pixels: uint8 `[H, W, 3]`.
      has_more: whether there are further images in the file.
      file_size: height and width, upright, before it was scaled.
    """

    pixels: np.ndarray
    has_more: bool
    file_size: tuple[int, int]


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of the files that can be read here."""
    from PIL import Image

    known = Image.registered_extensions()
    readable = set(Image.OPEN) - set(_LEFT_OUT) | {"MPO"}
    return frozenset(ending for ending, name in known.items() if name in readable)


def _open(file: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> Any:
    from PIL import Image

    suffixes()  # which has Pillow register its formats
    wanted = formats or set(Image.OPEN) - set(_LEFT_OUT)
    # In Pillow's order, and only what this Pillow has.
    return Image.open(file, formats=[name for name in Image.OPEN if name in wanted])


def shape(path: Path, size: int) -> tuple[int, int, int]:
    """Return the shape of what `read` gives but for a turn by EXIF, from the head of the file.

    Raises:
      Exception: many kinds; it is not an image.
    """
    if size:
        return size, size, 3
    with warnings.catch_warnings(action="ignore"), _open(path) as image:
        return image.height, image.width, 3


def read(path: Path, size: int | tuple[int, int]) -> Decoded:
    """Read an image.

    It is turned as EXIF says, laid on white where it is transparent, and brought to RGB. Grey of 16
    bits is scaled to 8.

    Args:
      path: of a file of any format that Pillow reads by itself; the first image of several.
      size: height and width, or one number for both: the image is scaled until it covers them, and
        the middle is cut out. 0 leaves it as it is.

    Raises:
      Exception: many kinds; it is not an image, or one whose scale is not known.
    """
    pixels, has_more = decode(path)
    file_size = pixels.height, pixels.width
    if size:
        return Decoded(fit(pixels, (size, size) if isinstance(size, int) else size), has_more,
                       file_size)  # fmt: skip
    return Decoded(np.asarray(pixels), has_more, file_size)


def decode(file: Path | BinaryIO, formats: tuple[str, ...] | None = None,
           most_pixels: int | None = None) -> tuple[Any, bool]:  # fmt: skip
    """Return an image in RGB, upright, and whether there are further images in the file.

    Args:
      file: path, or what is open.
      formats: of Pillow, that are allowed; None: all that need no other program.
      most_pixels: that it may have, of which its head tells; None: what Pillow allows.

    Raises:
      Exception: many kinds; it is not an image, or one whose scale is not known.
    """
    # Pillow warns of damage that it reads past, and of half of what it refuses as a bomb.
    with warnings.catch_warnings(action="ignore"), _open(file, formats) as image:
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise TooManyPixelsError(
                f"it has {image.width:,} x {image.height:,} pixels, more than {most_pixels:,}"
            )
        several = image.format in _OF_SEVERAL and getattr(image, "is_animated", False)
        image.load()
        return _upright(to_rgb(image), image), several


def fit(image: Any, size: tuple[int, int]) -> np.ndarray:
    """Scale an RGB image until it covers a height and a width, and cut out the middle.

    Returns:
      uint8 `[height, width, 3]`.
    """
    from PIL import Image, ImageOps

    height, width = size
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error to raise where `read` or `decode` failed."""
    from PIL import UnidentifiedImageError

    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            return UserError(f"{path} is empty (0 bytes): mend it or take it away")
    reason: object = error
    if isinstance(error, UnidentifiedImageError):  # which says the path again, and no more
        reason = "it begins as no kind of image that Pillow reads"
    return UserError(f"{path} cannot be read as an image ({reason}): mend it or take it away")


def _upright(pixels: Any, image: Any) -> Any:
    """Turn pixels as the EXIF of their file says; damaged EXIF says nothing.

    Source: CIPA DC-008 (Exif 2.32), tag Orientation.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION))
    except Exception:  # Pillow raises many kinds; the pixels are good all the same
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


def to_rgb(image: Any) -> Any:
    """Bring an image of any of Pillow's modes to RGB."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'integers of 32 bits' if image.mode == 'I' else 'floats'}, and "
            "nothing says which of them is white: save it with 8 or 16 bits a channel"
        )
    if image.mode == "LAB":
        raise ValueError("its colours are L*a*b*: save it as RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(page, image).convert("RGB")


def _from_16_bits(image: Any) -> Any:
    """Scale grey in 0..65535, in which Pillow gives these formats, to the nearest in 0..255."""
    from PIL import Image

    if image.format == "TIFF" and not _is_plain_grey(image):
        raise ValueError("its pixels are not 16 bits of grey with 0 for black: save it so")
    transparent = image.info.get("transparency")
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):  # or NumPy would need many times the image's memory
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        values = np.asarray(strip).astype(np.int32)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("its pixels are not in 0..65535")
        grey = ((values * 255 + 32_767) // 65_535).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
        if isinstance(transparent, int):
            pixels[values == transparent] = BACKGROUND
        rgb.paste(Image.fromarray(pixels), (0, top))
    return rgb


def _is_plain_grey(tiff: Any) -> bool:
    """Tell whether a grey TIFF of more than 8 bits has 16, and 0 for black.

    Pillow gives 12 bits, and white for 0, without scaling them. Source: TIFF 6.0, section 8.
    """
    bits, photometric = tiff.tag_v2.get(258), tiff.tag_v2.get(262)
    return bits in (16, (16,)) and photometric == 1
