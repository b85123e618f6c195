"""Pictures: found safely below their root, opened safely, and always upright RGB."""

import io
import os
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import PIL.Image
from PIL import ImageOps

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.fetching import fetch
from lightning_vlm.data.upright_size import upright_size
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import nearest, shorten

_Got = TypeVar("_Got")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""The formats that are opened. Pillow supports more, but some run other programs (EPS) or aren't pictures."""

_MOST_ENTRIES = 2000
"""How many entries of a folder are compared with the name of a missing picture."""

# A single letter before the colon is a Windows drive, and Path merges two slashes into one.
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


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
    path = str(image.path)
    root = str(image.root or ".")
    if _URL.match(path):
        url = shorten(path).replace(":/", "://", 1)
        expected = "the path of a file: pictures are never fetched; download it and write its path"
        raise DataError(source, key, f"the URL {url}", expected)
    try:
        real_root = _real_root(os.path.join(os.getcwd(), root))
        real = os.path.realpath(os.path.join(real_root, path))
    except (OSError, ValueError) as error:  # such as a null byte
        raise DataError(source, key, f"{shorten(path)} ({error})", "the path of a picture") from None
    if not _is_below(real, real_root):
        found = f"{shorten(path)}, which is outside {shorten(root)}"
        expected = "a path below the image root, with links followed; data.image_root says where that is"
        if advise and os.path.isabs(path) and os.path.isfile(real):
            folder = os.path.dirname(real)
            expected += f", and {shorten(folder)} has the file"
        raise DataError(source, key, found, expected)
    if not os.path.isfile(real):
        problem = "is not a file" if os.path.exists(real) else "does not exist"
        found = f"{shorten(path)}, which {problem} (looked for {shorten(real, 200)})"
        expected = f"a picture file below the image root {shorten(root)} (data.image_root)"
        if advise:
            expected += where_instead(path, real_root)
        raise DataError(source, key, found, expected)
    return Path(real)


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
        data = fetch(image.url, source, key)
    name = _name_of(image)
    try:
        with _opened(path, data) as file:
            picture = PIL.Image.open(file, formats=FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                found = f"{name} of {width}×{height} pixels"
                raise DataError(source, key, found, f"at most {max_pixels} pixels; make it smaller")
            if picture.mode in ("I", "F"):
                found = f"{name} with 32 bits a pixel"
                raise DataError(source, key, found, "8 or 16 bits a channel: what is white is unknown")
            return use(picture)
    except DataError:
        raise
    except Exception as error:  # decoders of broken files raise anything at all
        found, expected = _why_not_opened(error, name, max_pixels)
        raise DataError(source, key, found, expected) from error


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


def _why_not_opened(error: Exception, name: str, max_pixels: int) -> tuple[str, str]:
    """What was found instead of a picture, and what is expected."""
    if isinstance(error, PIL.UnidentifiedImageError):
        formats = ", ".join(FORMATS)
        return f"{name}, which is not a picture", f"a picture file ({formats})"
    if isinstance(error, PIL.Image.DecompressionBombError | PIL.Image.DecompressionBombWarning):
        expected = f"at most {max_pixels} pixels, and within PIL.Image.MAX_IMAGE_PIXELS"
        return f"{name} ({error})", expected
    return f"{name}, which cannot be decoded ({error})", "a whole picture file that can be read"


def _is_below(real: str, real_root: str) -> bool:
    """Whether a real path is the root, lies below it, or is a file that a snapshot of the hub links to."""
    if real == real_root:
        return True
    folders = (os.path.join(real_root, ""), _hub_files(real_root))
    return real.startswith(folders)


@lru_cache(maxsize=64)
def _real_root(root: str) -> str:
    """The real path of an image root, which is needed for every picture."""
    return os.path.realpath(root)


@lru_cache(maxsize=64)
def _hub_files(real_root: str) -> str:
    """Where the files of a root lie to which the hub's cache links from its snapshots; else the root itself.

    >>> import tempfile
    >>> repository = Path(tempfile.mkdtemp(), "datasets--pets").resolve()
    >>> for name in ("blobs", "snapshots/12ab/images"):
    ...     (repository / name).mkdir(parents=True)
    >>> Path(_hub_files(str(repository / "snapshots/12ab/images"))).name
    'blobs'
    """
    repository, snapshots, _ = real_root.partition(f"{os.sep}snapshots{os.sep}")
    if snapshots:
        files = os.path.join(repository, "blobs", "")
        if os.path.isdir(files):
            return files
    return os.path.join(real_root, "")


def where_instead(path: str, root: str) -> str:
    """What a missing picture's path or root should probably be, to end an error with; or nothing.

    Args:
        path: As it stands in the data.
        root: The real path of the image root.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "train").mkdir()
    >>> (root / "train" / "cat.jpg").touch()
    >>> where_instead("train/cat.jpeg", str(root))
    "; did you mean 'train/cat.jpg'?"
    >>> where_instead("cat.jpg", str(root))
    "; it is below ...train': set data.image_root to that"
    """
    for folder in _other_roots(root):
        if os.path.isfile(os.path.join(folder, path)):
            return f"; it is below {folder!r}: set data.image_root to that"
    names = path.replace("\\", "/").split("/")
    for start in range(1, len(names)):
        shorter = "/".join(names[start:])
        if os.path.isfile(os.path.join(root, shorter)):
            return f"; did you mean {shorten(shorter)}?"
    folder = os.path.dirname(path)
    files = _files_in(os.path.join(root, folder))
    meant = nearest(os.path.basename(path), files)
    if meant is None:
        return ""
    return f"; did you mean {shorten(os.path.join(folder, meant))}?"


def _other_roots(root: str) -> list[str]:
    """The folders around and directly in the image root, and the working directory: those usually meant."""
    parents = [str(folder) for folder in Path(root).parents]
    try:
        folders = [entry.path for entry in _entries(root) if entry.is_dir()]
    except OSError:
        folders = []
    return [os.getcwd(), *parents[:3], *sorted(folders[:50])]


def _files_in(folder: str) -> list[str]:
    try:
        names = [entry.name for entry in _entries(folder) if entry.is_file()]
    except (OSError, ValueError):
        return []
    return sorted(names)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(islice(entries, _MOST_ENTRIES))


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
