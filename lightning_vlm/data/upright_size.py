"""How large a picture is once it stands upright, without decoding its pixels."""

from typing import BinaryIO, cast

import PIL.Image
from PIL import ExifTags
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

_MAY_HOLD_ORIENTATION = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""The chunks of a PNG file that can say how a picture is to be turned."""


def upright_size(picture: PIL.Image.Image) -> tuple[int, int]:
    """The width and height that a picture has after `ImageOps.exif_transpose`.

    Args:
        picture: Opened from a file, and not decoded. It stays so, but for a PNG file that says something
            behind its pixels.
    """
    width, height = picture.size
    if isinstance(picture, TiffImageFile) and ExifTags.Base.Orientation in picture.tag_v2:
        return width, height  # Pillow has turned the size of these
    if isinstance(picture, PngImageFile) and not _ends_with_words(cast(BinaryIO, picture.fp)):
        # A PngImageFile would decode all pixels to look behind them.
        exif = PIL.Image.Image.getexif(picture)
    else:
        exif = picture.getexif()
    lies_on_its_side = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if lies_on_its_side else (width, height)


def _ends_with_words(file: BinaryIO) -> bool:
    """Whether there is a chunk behind the pixels of a PNG file that can hold an orientation."""
    place = file.tell()
    file.seek(8)  # behind the signature
    behind_pixels = found = False
    while len(head := file.read(8)) == 8 and not found:
        kind = head[4:]
        behind_pixels |= kind == b"IDAT"
        found = behind_pixels and kind in _MAY_HOLD_ORIENTATION
        file.seek(int.from_bytes(head[:4], "big") + 4, 1)  # the chunk and its checksum
    file.seek(place)
    return found
