"""Sizes read from the heads of files are those of the decoded pictures."""

import io
import struct
import zlib

import PIL.Image
import pytest

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.images import FORMATS, image_size, load_image
from lightning_vlm.errors import DataError

XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def encoded(kind, picture=None, **options):
    file = io.BytesIO()
    (picture or PIL.Image.new("RGB", (7, 4))).save(file, kind, **options)
    return file.getvalue()


def both_sizes(data):
    image = Image(data=data)
    return image_size(image, "a", "b"), load_image(image, "a", "b").size


@pytest.mark.parametrize("orientation", [None, *range(10)])
@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_with_each_orientation(kind, orientation):
    exif = PIL.Image.Exif()
    options = {}
    if orientation is not None:
        exif[0x0112] = orientation
        options["exif"] = exif
    size, decoded = both_sizes(encoded(kind, **options))
    assert size == decoded
    if kind in ("JPEG", "PNG", "TIFF", "WEBP") and orientation in (5, 6, 7, 8):
        assert size == (4, 7)  # it was taken into account


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("in_exif", [None, 1, 3, 6])
def test_orientation_in_xmp(kind, in_exif):
    options = {"xmp": XMP.format(8).encode()}
    if in_exif is not None:
        exif = PIL.Image.Exif()
        exif[0x0112] = in_exif
        options["exif"] = exif
    size, decoded = both_sizes(encoded(kind, **options))
    assert size == decoded


def with_chunk(png, kind, body, behind_pixels):
    """A PNG file with one more chunk."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    place = len(png) - 12 if behind_pixels else 33
    return png[:place] + chunk + png[place:]


@pytest.mark.parametrize("behind_pixels", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_png_file_may_say_it_before_or_behind_its_pixels(behind_pixels, turned):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6 if turned else 1
    for kind, body in (
        (b"eXIf", exif.tobytes()[6:]),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(6 if turned else 1).encode()),
        (b"tEXt", b"Comment\0none"),
    ):
        size, decoded = both_sizes(with_chunk(encoded("PNG"), kind, body, behind_pixels))
        assert size == decoded, kind
        if kind != b"tEXt":
            assert size == ((4, 7) if turned else (7, 4)), kind


def test_no_pixels_are_decoded(monkeypatch):
    def refuse(*_):
        raise AssertionError("decodes")

    data = [encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")]
    monkeypatch.setattr(PIL.Image.Image, "load", refuse)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", refuse)
    for each in data:
        assert image_size(Image(data=each), "a", "b") == (7, 4)


def test_animations_and_pages_give_the_size_of_their_first_picture():
    small, large = PIL.Image.new("RGB", (5, 3)), PIL.Image.new("RGB", (9, 8), "red")
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        size, decoded = both_sizes(encoded(kind, large, save_all=True, append_images=[small.resize((9, 8))]))
        assert size == decoded


def test_what_is_wrong_with_the_head_is_said_as_when_the_picture_is_loaded():
    whole = encoded("PNG")
    for data in (b"no picture", whole[:20], encoded("TIFF", PIL.Image.new("F", (3, 2)))):
        said = []
        for opened in (load_image, image_size):
            with pytest.raises(DataError) as caught:
                opened(Image(data=data), "a.jsonl:3", "image")
            said.append(str(caught.value))
        assert said[0] == said[1]
    with pytest.raises(DataError, match="at most 20 pixels"):
        image_size(Image(data=whole), "a", "b", max_pixels=20)
    assert image_size(Image(data=whole[:-20]), "a", "b") == (
        7,
        4,
    )  # training finds the cut
