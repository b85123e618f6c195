"""Pictures: found safely below their root, opened safely, and always upright RGB."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import PIL.Image
from PIL import ImageOps

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.fetching import fetch
from lightning_vlm.data.files_below import find_below
from lightning_vlm.data.upright_size import upright_size
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import shorten

_Got = TypeVar("_Got")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""The formats that are opened. Pillow supports more, but some run other programs (EPS) or aren't pictures."""


def find_image(image: Image, source: str, key: str, advise: bool = True) -> Path | None:
    """Where the file of a picture is. Looks, but does not open.

    Args:
        image: A picture by path, by bytes or by URL. Its path is taken from `image.root` (the working
            directory if there is no root) and must end below it when `..` and symbolic links are followed.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        advise: Whether the error says which file or folder was probably meant, which takes some search.

    Returns:
        The real path of a file that exists; None for a picture that comes as bytes or from a URL.

    Raises:
        DataError: A URL, a path that leaves the root, no such file, or something that is not a plain file.

    >>> find_image(Image(Path("../secret.png"), root=Path("pictures")), "pets.jsonl:1", "image")
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:1: image: found '../secret.png', which is outside 'pictures';
    expected a path below the image root, with links followed; data.image_root says where that is
    """
    if image.path is None:
        return None
    return find_below(image.path, image.root, source, key, "picture", advise=advise)


def load_image(image: Image, source: str, key: str, max_pixels: int = 64_000_000) -> PIL.Image.Image:
    """Open a picture, upright and in RGB.

    The EXIF orientation is applied. What is transparent becomes white. Grey with 16 bits is scaled to 8. An
    animation or a file with several pages gives its first picture. Colour profiles are ignored, as image
    processors do. Nothing outside `image.root` is opened, and nothing but `image.url` is fetched.

    Args:
        image: A picture by path, by bytes or by URL.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        max_pixels: Width times height above which a picture is refused before its pixels are decoded.

    Returns:
        A picture in mode RGB that holds no open file.

    Raises:
        DataError: No such file, a path outside the root, a URL, not a picture, a broken or truncated picture,
            too many pixels, or pixels without a known range (32-bit).

    >>> file = io.BytesIO()
    >>> PIL.Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(file, "PNG")
    >>> load_image(Image(data=file.getvalue()), "pets.jsonl:1", "image").getpixel((0, 0))
    (255, 255, 255)
    """
    return _with_picture(image, source, key, max_pixels, _decode)


def load_small(
    image: Image, source: str, key: str, side: int, max_pixels: int = 64_000_000
) -> tuple[PIL.Image.Image, tuple[int, int]]:
    """A picture made small, and the size that it has; all its data is read, so that what is cut off is found.

    A JPEG is decoded at a fraction of its size, which takes a fraction of the time.

    Args:
        image: A picture by path, by bytes or by URL.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        side: The longer side of the small picture; a picture that is smaller stays as it is.
        max_pixels: As of `load_image`.

    Returns:
        The small picture, upright and in mode RGB, and the width and height of the whole one, upright.

    Raises:
        DataError: As `load_image`.
    """

    def small(picture: PIL.Image.Image) -> tuple[PIL.Image.Image, tuple[int, int]]:
        size = upright_size(picture)
        picture.draft(picture.mode, (side, side))
        decoded = _decode(picture)
        decoded.thumbnail((side, side), PIL.Image.Resampling.BOX)
        return decoded, size

    return _with_picture(image, source, key, max_pixels, small)


def image_size(image: Image, source: str, key: str, max_pixels: int = 64_000_000) -> tuple[int, int]:
    """The width and height that `load_image` would give, read from the head of the file.

    Args:
        image: A picture by path, by bytes or by URL, which is fetched.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        max_pixels: As of `load_image`.

    Raises:
        DataError: As `load_image`, but for what is wrong with the pixels themselves.

    >>> file = io.BytesIO()
    >>> exif = PIL.Image.Exif()
    >>> exif[0x0112] = 6  # taken with the camera on its side
    >>> PIL.Image.new("RGB", (3, 2)).save(file, "JPEG", exif=exif)
    >>> image_size(Image(data=file.getvalue()), "pets.jsonl:1", "image")
    (2, 3)
    """
    return _with_picture(image, source, key, max_pixels, upright_size)


def _with_picture(
    image: Image, source: str, key: str, max_pixels: int, use: Callable[[PIL.Image.Image], _Got]
) -> _Got:
    """What a function makes of an opened picture, whose pixels aren't decoded yet."""
    path = find_image(image, source, key)
    data = image.data or b""
    if image.url is not None:
        data = fetch(image.url, source, key, private=image.private)
    name = _name_of(image)
    try:
        with _opened(path, data) as file:
            picture = PIL.Image.open(file, formats=FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                found = f"{name} of {width}×{height} pixels"
                expected = f"at most {max_pixels} pixels; make it smaller"
                raise DataError(source, key, found, expected, "picture_too_large")
            if picture.mode in ("I", "F"):
                found = f"{name} with 32 bits a pixel"
                expected = "8 or 16 bits a channel: what is white is unknown"
                raise DataError(source, key, found, expected, "unreadable_picture")
            return use(picture)
    except DataError:
        raise
    except Exception as error:  # decoders of broken files raise anything at all
        found, expected = _why_not_opened(error, name, max_pixels, _start_of(path, data))
        kind = "truncated_picture" if "truncated" in str(error).lower() else "unreadable_picture"
        raise DataError(source, key, found, expected, kind) from error


def _name_of(image: Image) -> str:
    """What errors call a picture."""
    if image.data is not None:
        return f"{len(image.data)} bytes"
    return shorten(str(image.path or image.url))


def _opened(path: Path | None, data: bytes) -> BinaryIO:
    """The file of a picture, or its bytes as a file."""
    if path is None:
        return io.BytesIO(data)
    return path.open("rb")


_OTHERS = (
    (rb"....ftyp(?:hei|hev|mif1|msf1)", "a HEIC picture"),
    (rb"\s*(?:<\?xml[^>]*>\s*)?<svg", "an SVG drawing"),
    (rb"\s*<(?:!doctype|html|\?xml)", "a web page, as a failed download leaves"),
    (rb"%PDF", "a PDF"),
    (rb"%!PS", "an EPS drawing"),
    (rb"version https://git-lfs", "a pointer of git-lfs: run git lfs pull"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "a picture whose head is broken"),
    (rb"$", "an empty file"),
)
"""How files begin that can't be opened as pictures, and what they are."""


def _start_of(path: Path | None, data: bytes) -> bytes:
    """The first bytes of a picture's file."""
    try:
        with _opened(path, data) as file:
            return file.read(200)
    except OSError:
        return b""


def _why_not_opened(error: Exception, name: str, max_pixels: int, start: bytes) -> tuple[str, str]:
    """What was found instead of a picture, and what is expected."""
    if isinstance(error, PIL.UnidentifiedImageError):
        formats = ", ".join(FORMATS)
        known = (what for pattern, what in _OTHERS if re.match(pattern, start, re.DOTALL | re.IGNORECASE))
        found = next(known, None)
        is_what = f" ({found})" if found else ""
        return f"{name}, which is not a picture{is_what}", f"a picture file ({formats})"
    if isinstance(error, PIL.Image.DecompressionBombError | PIL.Image.DecompressionBombWarning):
        expected = f"at most {max_pixels} pixels, and within PIL.Image.MAX_IMAGE_PIXELS"
        return f"{name} ({error})", expected
    return f"{name}, which cannot be decoded ({error})", "a whole picture file that can be read"


def _decode(picture: PIL.Image.Image) -> PIL.Image.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    return _rgb(picture)


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value / 256)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    over = picture.convert("RGBA")
    white = PIL.Image.new("RGBA", over.size, "white")
    return PIL.Image.alpha_composite(white, over).convert("RGB")
