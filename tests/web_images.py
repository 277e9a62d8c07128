"""Images as people, and others, send them to a server."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG = "image/png"


def pixels(height=40, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image=None, kind="PNG", **options):
    file = io.BytesIO()
    image = Image.fromarray(pixels()) if image is None else image
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    head = struct.pack(">I", len(content)) + kind + content
    return head + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width, height, extra=b""):
    """A PNG file that claims a size, and holds no pixel."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def good():
    """Return name -> (content, content type) of what must be classified."""
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = Image.fromarray(pixels())
    grey = Image.fromarray(np.linspace(0, 65_535, 40 * 30).reshape(40, 30).astype("<u2"))
    return {
        "png": (encoded(), PNG),
        "jpeg": (encoded(kind="JPEG"), "image/jpeg"),
        "cmyk": (encoded(photo.convert("CMYK"), "JPEG"), "image/jpeg"),
        "progressive": (encoded(kind="JPEG", progressive=True), "image/jpeg"),
        "turned": (encoded(kind="JPEG", exif=turned), "image/jpeg; charset=binary"),
        "16 bits": (encoded(grey), PNG),
        "transparent": (encoded(photo.convert("RGBA")), PNG),
        "animated": (
            encoded(kind="GIF", save_all=True, append_images=[Image.new("RGB", photo.size)]),
            "image/gif",
        ),
        "webp": (encoded(kind="WEBP"), "image/webp"),
        "bmp": (encoded(kind="BMP"), "image/bmp"),
        "of another kind than is said": (encoded(kind="JPEG"), PNG),
        "of any kind": (encoded(), "application/octet-stream"),
        "one pixel": (encoded(Image.new("RGB", (1, 1))), PNG),
        "a line": (encoded(Image.new("RGB", (5_000, 1))), PNG),
    }


def hostile():
    """Return name -> (content, content type, status, what the sentence must say)."""
    png, jpeg, gif = encoded(), encoded(kind="JPEG"), encoded(kind="GIF")
    large = Image.new("RGB", (1_200, 1_000))  # more than the 1 MP of the tests' limits
    unread = "cannot be read as an image"
    text_bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 26)))
    scans = jpeg[:2] + b"\xff\xda\x00\x02" * 300 + jpeg[2:]
    return {
        "empty": (b"", PNG, 400, "the body is empty"),
        "text": (b"no image", PNG, 422, unread),
        "html": (b"<html><script>alert(1)</script>", PNG, 422, unread),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', PNG, 422, unread),
        "pdf": (b"%PDF-1.7\n%", PNG, 422, unread),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", PNG, 422, unread),
        "zip": (b"PK\x03\x04" + bytes(60), PNG, 422, unread),
        "program": (b"\x7fELF\x02\x01\x01" + bytes(60), PNG, 422, unread),
        "zeros": (bytes(5_000), PNG, 422, unread),
        "noise": (np.random.default_rng(3).bytes(5_000), PNG, 422, unread),
        "half a png": (png[: len(png) // 2], PNG, 422, unread),
        "head of a png": (png[:40], PNG, 422, unread),
        "signature of a png": (png[:8], PNG, 422, unread),
        "png without pixels": (png_of(9, 9), PNG, 422, unread),
        "png of no width": (png_of(0, 9), PNG, 422, unread),
        "png with a flipped bit": (png[:70] + bytes([png[70] ^ 1]) + png[71:], PNG, 422, unread),
        "png of 4 gigapixels": (png_of(65_000, 65_000), PNG, 413, "too large"),
        "png of 400 megapixels": (png_of(20_000, 20_000), PNG, 413, "too large"),
        "png of too many pixels": (encoded(large), PNG, 413, "1,200 x 1,000 pixels, more than"),
        "text bomb": (png_of(9, 9, text_bomb), PNG, 422, unread),
        "half a jpeg": (jpeg[: len(jpeg) // 2], "image/jpeg", 422, unread),
        "start of a jpeg": (b"\xff\xd8\xff", "image/jpeg", 422, unread),
        "jpeg of 300 scans": (scans, "image/jpeg", 422, "more than 200 scans"),
        "half a gif": (gif[: len(gif) // 2], "image/gif", 422, unread),
        "half a webp": (encoded(kind="WEBP")[:300], "image/webp", 422, unread),
        "half a bmp": (encoded(kind="BMP")[:300], "image/bmp", 422, unread),
        "a kind that is not taken": (encoded(kind="TIFF"), "image/png", 422, unread),
        "an icon": (encoded(kind="ICO"), "application/octet-stream", 422, unread),
        "too many bytes": (png + bytes(300_000), PNG, 413, "more than 200,000 bytes"),
        "far too many bytes": (bytes(2_000_000), PNG, 413, "more than 200,000 bytes"),
        "type of text": (png, "text/plain", 415, "Content-Type is 'text/plain': expected"),
        "type of a form": (png, "multipart/form-data; boundary=x", 415, "Content-Type is"),
        "type of json": (b"{}", "application/json", 415, "Content-Type is"),
        "type of tiff": (encoded(kind="TIFF"), "image/tiff", 415, "Content-Type is"),
        "no type": (png, "", 415, "Content-Type is missing"),
        "strange type": (png, "image/" + "x" * 500, 415, "Content-Type is"),
    }
