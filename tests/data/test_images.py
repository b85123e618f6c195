import contextlib
import io
import os
import random
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.images import FORMATS, find_image, load_image
from lightning_vlm.errors import DataError

# What a picture stored with EXIF orientation 1..8 shows, by the standard's table of row 0 and column 0.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def noise(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape, dtype=dtype)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def load(data, **options):
    return load_image(Image(data=data), "a.jsonl:3", "messages[0].content[0]", **options)


def refused(image, **options):
    with pytest.raises(DataError) as caught:
        load_image(image, "a.jsonl:3", "messages[0].content[0]", **options)
    error = caught.value
    assert (error.source, error.key) == ("a.jsonl:3", "messages[0].content[0]")
    assert error.found
    assert error.expected
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(orientation, kind):
    pixels = noise(3, 5, 3)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture = load(encoded(PIL.Image.fromarray(pixels), kind, exif=exif))
    np.testing.assert_array_equal(np.asarray(picture), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_becomes_white(mode):
    pixels = noise(6, 7, len(mode))
    alpha = pixels[..., -1:] / 255
    expected = np.broadcast_to(pixels[..., :-1] * alpha + 255 * (1 - alpha), (6, 7, 3))
    picture = load(encoded(PIL.Image.fromarray(pixels, mode)))
    assert picture.mode == "RGB"
    np.testing.assert_allclose(np.asarray(picture), expected, atol=1)


def test_transparent_colour_becomes_white():
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    picture = load(encoded(palette, transparency=1))
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    assert (
        load(encoded(PIL.Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))).getpixel((0, 0))
        == (255,) * 3
    )


def test_sixteen_bits_are_scaled():
    pixels = noise(4, 5, high=65536, dtype=np.uint16)
    picture = load(encoded(PIL.Image.fromarray(pixels)))
    np.testing.assert_array_equal(np.asarray(picture), np.repeat((pixels // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_mode_gives_rgb(mode):
    picture = PIL.Image.fromarray(noise(8, 9, 3)).convert(mode)
    got = load(encoded(picture, "TIFF"))
    assert got.mode == "RGB"
    assert type(got) is PIL.Image.Image  # holds no file
    np.testing.assert_array_equal(np.asarray(got), np.asarray(picture.convert("RGB")))


def test_32_bits_are_refused():
    error = refused(Image(data=encoded(PIL.Image.fromarray(noise(3, 3).astype(np.float32)), "TIFF")))
    assert "32 bits" in error.found


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "AVIF"])
def test_every_format_opens_and_no_damage_gets_through(kind):
    """Whatever the decoders make of broken files: a picture or a DataError."""
    data, rng = encoded(PIL.Image.fromarray(noise(30, 40, 3)), kind), random.Random(0)
    assert load(data).size == (40, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in range(150):
            broken = bytearray(data)
            for _ in range(rng.randint(1, 20)):
                broken[rng.randrange(min(len(data), 200))] = rng.randrange(256)
            end = rng.randrange(1, len(data)) if trial % 2 else len(data)
            with contextlib.suppress(DataError):
                assert load(bytes(broken[:end]), max_pixels=10_000).mode == "RGB"


def test_broken_exif_is_no_harm_or_a_data_error():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data, rng = encoded(PIL.Image.fromarray(noise(30, 40, 3)), "JPEG", exif=exif), random.Random(0)
    start = data.index(b"Exif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(200):
            broken = bytearray(data)
            broken[start + rng.randrange(40)] = rng.randrange(256)
            with contextlib.suppress(DataError):
                load(bytes(broken))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_is_refused(kind, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(encoded(PIL.Image.fromarray(noise(64, 64, 3)), kind)[:-2000])
    error = refused(Image(Path("cat.jpg"), root=tmp_path))
    assert "'cat.jpg', which cannot be decoded" in error.found


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_not_a_picture(data):
    refused(Image(data=data))


def test_pictures_that_are_programs():
    """Pillow gives PostScript to another program to run."""
    eps = encoded(PIL.Image.new("RGB", (4, 4)), "EPS")
    assert PIL.Image.open(io.BytesIO(eps)).format == "EPS"
    assert "is not a picture" in refused(Image(data=eps)).found


def test_too_many_pixels_before_any_is_decoded():
    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    def bomb(side):
        head = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(b""))
            + chunk(b"IEND", b"")
        )

    assert "9000×9000" in refused(Image(data=bomb(9000))).found
    assert "decompression bomb" in refused(Image(data=bomb(60_000))).found
    picture = encoded(PIL.Image.new("RGB", (10, 10)))
    assert load(picture, max_pixels=100).size == (10, 10)
    assert refused(Image(data=picture), max_pixels=99).expected.startswith("at most 99 pixels")


@pytest.fixture
def folder(tmp_path):
    """root/inside.png, secret.png beside the root, and links of every sort."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    picture = encoded(PIL.Image.new("RGB", (2, 3), "red"))
    for path in (root / "inside.png", root / "sub" / "deep.png", tmp_path / "secret.png"):
        path.write_bytes(picture)
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "secret.png").write_bytes(picture)
    (root / "good_link.png").symlink_to("sub/deep.png")
    (root / "bad_link.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize(
    "path", ["inside.png", "sub/deep.png", "sub/../inside.png", "good_link.png", "out/root/inside.png"]
)
def test_below_the_root(folder, path):
    assert load_image(Image(Path(path), root=folder), "a", "b").size == (2, 3)
    assert load_image(Image(folder / path, root=folder), "a", "b").size == (2, 3)


def test_the_root_itself_may_be_a_link(folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert load_image(Image(Path("inside.png"), root=link), "a", "b").size == (2, 3)


def test_without_a_root_it_is_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_image(Image(Path("inside.png")), "a", "b").size == (2, 3)
    assert "outside" in refused(Image(Path("../secret.png"))).found


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("../secret.png", "outside"),
        ("sub/../../secret.png", "outside"),
        ("../root2/secret.png", "outside"),  # begins with the root's letters
        ("bad_link.png", "outside"),
        ("out/secret.png", "outside"),
        ("/etc/passwd", "outside"),
        ("missing.png", "does not exist"),
        ("loop", "does not exist"),
        ("sub", "is not a file"),
        ("", "is not a file"),
        ("pipe", "is not a file"),
        ("inside.png\0", "null"),
        ("x" * 5000, "does not exist"),
        ("https://example.org/cat.png", "the URL 'https://example.org/cat.png'"),
        ("file:///etc/passwd", "the URL"),
        ("S3://bucket/cat.png", "the URL"),
    ],
)
def test_refused_paths_are_never_opened(folder, path, found, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *args: pytest.fail("opened"))
    error = refused(Image(Path(path), root=folder))
    assert found in error.found


def test_an_unreadable_file(folder, monkeypatch):
    def denied(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refused(Image(Path("inside.png"), root=folder)).found


def test_bytes_have_no_file():
    assert find_image(Image(data=b"x"), "a", "b") is None
