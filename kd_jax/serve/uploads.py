"""Images as they come over HTTP: decoded within bounds, or refused with a status and a sentence."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, NamedTuple

from kd_jax.data import image_files
from kd_jax.runtime.errors import in_short

# What browsers and cameras send. Fewer decoders than Pillow has: each is a way in.
TYPES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/avif": "AVIF",
}
ANY_TYPE = "application/octet-stream"  # the content tells which
_START_OF_SCAN, _MOST_SCANS = b"\xff\xda", 200  # a progressive photograph has about ten


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Attributes:
      bytes: of the image file.
      pixels: of the image.
      seconds: to receive an image, and again to answer.
      requests: at once, from the first byte to the answer; more are sent away.
    """

    bytes: int = 10_000_000
    pixels: int = 30_000_000
    seconds: float = 20.0
    requests: int = 64


class Refused(Exception):  # noqa: N818 -- an answer, and no error of ours
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Upload(NamedTuple):
    """An image.

    Attributes:
      image: of Pillow, RGB, upright.
      has_more: whether the file holds further images, such as an animation.
    """

    image: Any
    has_more: bool


def check_type(content_type: str) -> None:
    """Raise `Refused` unless a Content-Type is that of an image that is taken."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (*TYPES, ANY_TYPE):
        shown = f"Content-Type is {kind[:60]!r}" if kind else "Content-Type is missing"
        raise Refused(415, f"{shown}: expected {', '.join(TYPES)} or {ANY_TYPE}")


def decode(content: bytes, limits: Limits) -> Upload:
    """Return the image in a file.

    Raises:
      Refused: it is empty, no image, damaged, or larger than allowed or than memory.
    """
    if not content:
        raise Refused(400, "the body is empty: expected the bytes of an image file")
    if content[:2] == b"\xff\xd8" and content.count(_START_OF_SCAN) > _MOST_SCANS:
        raise Refused(422, f"the image is a JPEG of more than {_MOST_SCANS} scans: save it again")
    try:
        return Upload(
            *image_files.decode(io.BytesIO(content), tuple(TYPES.values()), limits.pixels)
        )
    except image_files.TooManyPixelsError as error:
        raise Refused(413, f"the image is too large: {error}; send it smaller") from None
    except MemoryError:
        raise Refused(503, "the machine has no memory for the image now: send it smaller") from None
    except Exception as error:  # Pillow raises many kinds
        name = type(error).__name__
        if name == "DecompressionBombError":
            raise Refused(413, f"the image is too large: {in_short(error)}") from None
        is_unknown = name == "UnidentifiedImageError"  # whose text names an object of Python
        reason = "" if is_unknown else f" ({in_short(error)})"
        raise Refused(
            422,
            f"the body cannot be read as an image{reason}: expected a whole file of "
            f"{', '.join(TYPES.values())}",
        ) from None
