"""Pictures that are broken, odd, too large, or none."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.images import image_size, load_image, load_small
from tests.corpus.case import Case, Right


def take(name: str) -> tuple[tuple[int, int], Any]:
    """Open a picture in all three ways; its size, and its first pixel."""
    image = Image(path=Path(name), root=Path("."))
    size = image_size(image, "data.jsonl:1", "image")
    picture = load_image(image, "data.jsonl:1", "image")
    small, whole = load_small(image, "data.jsonl:1", "image", 8)
    assert picture.mode == small.mode == "RGB"
    assert picture.size == size == whole
    return size, picture.getpixel((0, 0))


def written(data: bytes, name: str = "a.png") -> Callable[[], str]:
    """A file with these bytes."""

    def make() -> str:
        Path(name).write_bytes(data)
        return name

    return make


def saved(picture: PIL.Image.Image, format: str, name: str = "", **options: Any) -> Callable[[], str]:
    """A file of a picture."""

    def make() -> str:
        return written(encoded(picture, format, **options), name or f"a.{format.lower()}")()

    return make


def encoded(picture: PIL.Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with this head, and then these chunks."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def bmp(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A BMP with this head."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + head + pixels


def exif(kind: int, count: int, value: bytes) -> bytes:
    """EXIF whose one tag is the orientation, of a type of TIFF."""
    tag = struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + b"\0\0\0\0"


RED = PIL.Image.new("RGB", (16, 12), (200, 0, 0))
NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
PNG, JPEG = encoded(NOISE), encoded(NOISE, "JPEG")
PALETTE = RED.convert("P")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64
EMPTY = chunk(b"IDAT", zlib.compress(b""))
GIFS = {"save_all": True, "append_images": [PIL.Image.new("RGB", (16, 12), "blue")], "duration": 10}

CASES = {
    # None
    "0 bytes": Case(
        written(b""), "data.jsonl:1: image: found 'a.png', which is not a picture (an empty file)"
    ),
    "text": Case(written(b"hello"), "data.jsonl:1: image: found 'a.png', which is not a picture"),
    "a page": Case(
        written(b"<!doctype html><html></html>"),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a web page, as a failed",
    ),
    "an SVG": Case(
        written(SVG, "a.svg"), "data.jsonl:1: image: found 'a.svg', which is not a picture (an SVG drawing)"
    ),
    "an SVG named as PNG": Case(
        written(SVG), "data.jsonl:1: image: found 'a.png', which is not a picture (an SVG drawing)"
    ),
    "HEIC": Case(
        written(HEIC, "a.heic"),
        "data.jsonl:1: image: found 'a.heic', which is not a picture (a HEIC picture)",
    ),
    "a PDF": Case(
        written(b"%PDF-1.7\n" + b"\0" * 100),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a PDF)",
    ),
    "an EPS": Case(
        written(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.eps"),
        "data.jsonl:1: image: found 'a.eps', which is not a picture (an EPS drawing)",
    ),
    "a pointer of git-lfs": Case(
        written(b"version https://git-lfs.github.com/spec/v1\n"),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a pointer of git-lfs: run",
    ),
    "a folder": Case(
        lambda: Path("a.png").mkdir() or "a.png",
        "data.jsonl:1: image: found 'a.png', which is not a file (looked for '",
    ),
    # Broken
    "half a PNG": Case(
        written(PNG[: len(PNG) // 2]),
        "data.jsonl:1: image: found 'a.png', which cannot be decoded (image file is truncated)",
    ),
    "a PNG without its last byte": Case(written(PNG[:-1]), Right(((64, 64), (94, 129, 193)))),
    "only the head of a PNG": Case(
        written(PNG[:33]),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a picture whose head is",
    ),
    "only the signature of a PNG": Case(
        written(PNG[:8]),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a picture whose head is",
    ),
    "a PNG with broken data": Case(
        written(PNG[:60] + b"\xff" * 40 + PNG[100:]),
        "data.jsonl:1: image: found 'a.png', which cannot be decoded (broken data stream when",
    ),
    "a PNG with a wrong checksum": Case(
        written(PNG[:29] + b"\0\0\0\0" + PNG[33:]),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a picture whose head is",
    ),
    "a PNG without pixels": Case(
        written(png(16, 12)),
        "data.jsonl:1: image: found 'a.png', which cannot be decoded (cannot load this image)",
    ),
    "a PNG of too few pixels": Case(
        written(png(16, 12, EMPTY)),
        "data.jsonl:1: image: found 'a.png', which cannot be decoded (image file is truncated (0",
    ),
    "a PNG of an unknown colour": Case(
        written(png(16, 12, EMPTY, colour=5)),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a picture whose head is",
    ),
    "half a JPEG": Case(
        written(JPEG[: len(JPEG) // 2], "a.jpg"),
        "data.jsonl:1: image: found 'a.jpg', which cannot be decoded (image file is truncated (1",
    ),
    "only the head of a JPEG": Case(
        written(JPEG[:200], "a.jpg"),
        "data.jsonl:1: image: found 'a.jpg', which cannot be decoded (Truncated File Read)",
    ),
    "a JPEG with a hole": Case(
        written(JPEG[:1000] + b"\0" * 1000 + JPEG[2000:], "a.jpg"), Right(((64, 64), (153, 91, 192)))
    ),
    "half a GIF": Case(
        written(encoded(NOISE, "GIF")[:2000], "a.gif"),
        "data.jsonl:1: image: found 'a.gif', which cannot be decoded (image file is truncated",
    ),
    "half a WebP": Case(
        written(encoded(NOISE, "WEBP")[:1000], "a.webp"),
        "data.jsonl:1: image: found 'a.webp', which cannot be decoded (could not create decoder",
    ),
    "half a TIFF": Case(
        written(encoded(NOISE, "TIFF")[:1000], "a.tiff"),
        "data.jsonl:1: image: found 'a.tiff', which cannot be decoded (image file is truncated",
    ),
    "half a BMP": Case(
        written(encoded(NOISE, "BMP")[:1000], "a.bmp"),
        "data.jsonl:1: image: found 'a.bmp', which cannot be decoded (image file is truncated",
    ),
    # Sizes
    "1 by 1": Case(saved(PIL.Image.new("RGB", (1, 1), "red"), "PNG"), Right(((1, 1), (255, 0, 0)))),
    "0 by 0": Case(
        written(png(0, 0, EMPTY)),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a picture whose head is",
    ),
    "0 by 12": Case(
        written(png(0, 12, EMPTY)),
        "data.jsonl:1: image: found 'a.png', which is not a picture (a picture whose head is",
    ),
    "100,000 by 1": Case(saved(PIL.Image.new("L", (100_000, 1), 7), "PNG"), Right(((100000, 1), (7, 7, 7)))),
    "a head of 100,000 by 100,000": Case(
        written(png(100_000, 100_000, EMPTY)),
        "data.jsonl:1: image: found 'a.png' (Image size (10000000000 pixels) exceeds limit of",
    ),
    "a head of 2 billion by 2 billion": Case(
        written(png(2**31 - 1, 2**31 - 1, EMPTY)),
        "data.jsonl:1: image: found 'a.png' (Image size (4611686014132420609 pixels) exceeds",
    ),
    "a bomb of 400 million pixels": Case(
        saved(PIL.Image.new("1", (20_000, 20_000)), "PNG"),
        "data.jsonl:1: image: found 'a.png' (Image size (400000000 pixels) exceeds limit of",
    ),
    "a BMP of 50,000 by 50,000": Case(
        written(bmp(50_000, 50_000), "a.bmp"),
        "data.jsonl:1: image: found 'a.bmp' (Image size (2500000000 pixels) exceeds limit of",
    ),
    "a BMP of a negative width": Case(
        written(bmp(-16, 12), "a.bmp"),
        "data.jsonl:1: image: found 'a.bmp' (Image size (51539607360 pixels) exceeds limit of",
    ),
    "a PPM of a trillion pixels": Case(
        written(b"P6 1000000 1000000 255\n", "a.ppm"),
        "data.jsonl:1: image: found 'a.ppm' (Image size (1000000000000 pixels) exceeds limit of",
    ),
    "a PPM of NaN": Case(
        written(b"P6 nan 12 255\n", "a.ppm"),
        "data.jsonl:1: image: found 'a.ppm', which cannot be decoded (invalid literal for int()",
    ),
    "a text chunk of 100 MB": Case(
        written(png(16, 12, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 100_000_000)), EMPTY)),
        "data.jsonl:1: image: found 'a.png', which cannot be decoded (Decompressed data too",
    ),
    # Sound, though odd
    "a JPEG named as PNG": Case(saved(RED, "JPEG", "a.png"), Right(((16, 12), (200, 0, 0)))),
    "a PNG without a suffix": Case(saved(RED, "PNG", "a"), Right(((16, 12), (200, 0, 0)))),
    "a palette": Case(saved(PALETTE, "PNG"), Right(((16, 12), (204, 0, 0)))),
    "a palette with transparency": Case(
        saved(PALETTE, "PNG", transparency=0), Right(((16, 12), (204, 0, 0)))
    ),
    "a palette with alpha": Case(
        saved(RED.convert("RGBA").quantize(), "PNG"), Right(((16, 12), (200, 0, 0)))
    ),
    "CMYK": Case(saved(RED.convert("CMYK"), "JPEG"), Right(((16, 12), (200, 0, 0)))),
    "LAB": Case(saved(PIL.Image.new("LAB", (16, 12)), "TIFF"), Right(((16, 12), (0, 59, 195)))),
    "grey with alpha": Case(
        saved(PIL.Image.new("LA", (16, 12), (9, 0)), "PNG"), Right(((16, 12), (255, 255, 255)))
    ),
    "16 bits of grey": Case(
        saved(PIL.Image.new("I;16", (16, 12), 40_000), "PNG"), Right(((16, 12), (156, 156, 156)))
    ),
    "32 bits of grey": Case(
        saved(PIL.Image.new("I", (16, 12), 70_000), "TIFF"),
        "data.jsonl:1: image: found 'a.tiff' with 32 bits a pixel",
    ),
    "floating point": Case(
        saved(PIL.Image.new("F", (16, 12), 0.5), "TIFF"),
        "data.jsonl:1: image: found 'a.tiff' with 32 bits a pixel",
    ),
    "1 bit": Case(saved(PIL.Image.new("1", (16, 12), 1), "PNG"), Right(((16, 12), (255, 255, 255)))),
    "an animated GIF": Case(saved(RED, "GIF", **GIFS), Right(((16, 12), (200, 0, 0)))),
    "an animated WebP": Case(saved(RED, "WEBP", **GIFS), Right(((16, 12), (200, 0, 0)))),
    "a TIFF of two pages": Case(saved(RED, "TIFF", **GIFS), Right(((16, 12), (200, 0, 0)))),
    # EXIF
    "turned by EXIF": Case(saved(RED, "JPEG", exif=exif(3, 1, b"\6")), Right(((12, 16), (200, 0, 0)))),
    "an orientation of 99": Case(
        saved(RED, "JPEG", exif=exif(3, 1, b"\x63")), Right(((16, 12), (200, 0, 0)))
    ),
    "an orientation that is a text": Case(
        saved(RED, "JPEG", exif=exif(2, 3, b"up")), Right(((16, 12), (200, 0, 0)))
    ),
    "an orientation of several": Case(
        saved(RED, "JPEG", exif=exif(3, 2, b"\6\0\6")), Right(((12, 16), (200, 0, 0)))
    ),
    "EXIF of noise": Case(
        saved(RED, "JPEG", exif=b"Exif\0\0" + b"\xff" * 500), Right(((16, 12), (200, 0, 0)))
    ),
    "EXIF that breaks off": Case(
        saved(RED, "JPEG", exif=exif(3, 1, b"\6")[:20]), Right(((16, 12), (200, 0, 0)))
    ),
    "XMP that is no XML": Case(saved(RED, "PNG", xmp=b"\xff\xfe"), Right(((16, 12), (200, 0, 0)))),
    "a colour profile of noise": Case(
        saved(RED, "PNG", icc_profile=b"\xff" * 200), Right(((16, 12), (200, 0, 0)))
    ),
}
