"""Pictures that look alike: the hash as imagehash has it, and all near pairs as found by brute force."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ImageEnhance

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.images import load_image, load_small
from lightning_vlm.errors import DataError
from lightning_vlm.lint.hashes import (
    LARGEST_DISTANCE,
    LARGEST_STEP,
    WINDOW,
    Looks,
    alike,
    difference_hash,
    looks_of,
)
from tests.lint.planted import picture


def as_published(image, size=8, columns=False):
    """`imagehash.dhash` and `dhash_vertical` of version 4.3: whether a pixel is brighter than its neighbour
    at the left (above), on a grey picture one column (row) larger than the hash."""
    shape = (size, size + 1) if columns else (size + 1, size)
    grey = image.convert("L").resize(shape, PIL.Image.Resampling.LANCZOS)
    right, down = (0, 1) if columns else (1, 0)
    bits = []
    for y in range(size):
        row = [grey.getpixel((x + right, y + down)) > grey.getpixel((x, y)) for x in range(size)]
        bits.append(row)
    return bits


@pytest.mark.parametrize("columns", [False, True])
def test_the_hash_is_the_published_one(columns):
    for number in range(5):
        image = picture(number, (120, 90 + number))
        assert difference_hash(image, columns).tolist() == as_published(image, columns=columns)


def brute_force(looks):
    """Groups of pictures, where each is compared with each."""
    count = len(looks.bits)
    roots = list(range(count))
    bits = np.unpackbits(looks.bits, axis=1).astype(int)
    for one in range(count):
        distances = np.abs(bits - bits[one]).sum(1)
        steps = np.abs(looks.colours.astype(int) - looks.colours[one].astype(int)).max(1)
        for other in np.flatnonzero((distances <= LARGEST_DISTANCE) & (steps <= LARGEST_STEP)):
            first, second = sorted((roots[one], roots[other]))
            roots = [first if root == second else root for root in roots]
    return roots


def test_bands_find_all_near_pairs():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (120, 16), np.uint8)
    colours = rng.integers(0, 256, (120, 48), np.uint8)
    for place in range(60, 120):  # near some other one, on either side of the largest distance
        bits[place] = bits[place - 60]
        colours[place] = np.clip(colours[place - 60].astype(int) + rng.integers(-14, 14, 48), 0, 255)
        if place % 2:
            colours[place] = colours[place - 60]
        for flipped in rng.choice(128, rng.integers(0, 12), replace=False):
            bits[place, flipped // 8] ^= 128 >> (flipped % 8)
    looks = Looks(bits, colours)
    found = alike(looks)
    assert found.tolist() == brute_force(looks)
    assert 60 < len(set(found.tolist())) < 120


def test_many_equal_hashes_take_no_square_of_comparisons():
    count = 20 * WINDOW
    looks = Looks(np.zeros((count, 16), np.uint8), np.zeros((count, 48), np.uint8))
    assert set(alike(looks).tolist()) == {0}


def test_copies_look_alike_and_others_do_not():
    images = [picture(number, (320, 240)) for number in range(12)]
    first = images[0]
    images += [first.resize((200, 150)), ImageEnhance.Brightness(first).enhance(1.01)]
    bits, colours = zip(*map(looks_of, images), strict=True)
    groups = alike(Looks(np.stack(bits), np.stack(colours))).tolist()
    assert groups == [*range(12), 0, 0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 90}),
        ("b.jpg", {"quality": 90, "progressive": True}),
        ("c.png", {}),
        ("d.webp", {}),
    ],
)
def test_what_breaks_off_is_found_in_the_small_picture_too(tmp_path, name, options):
    path = tmp_path / name
    picture(1, (1600, 1200)).save(path, **options)
    small, size = load_small(Image(Path(name), root=tmp_path), "a:1", "image", 128)
    assert size == (1600, 1200)
    assert small.size == (128, 96)
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        messages = []
        for load in (load_image, lambda *given: load_small(*given, 128)):
            with pytest.raises(DataError) as raised:
                load(Image(Path(name), root=tmp_path), "a:1", "image")
            messages.append((raised.value.kind, raised.value.expected))
        assert messages[0] == messages[1]


def test_a_small_picture_is_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture(2, (400, 200)).save(tmp_path / "a.jpg", exif=exif)
    small, size = load_small(Image(Path("a.jpg"), root=tmp_path), "a:1", "image", 128)
    assert (small.size, size) == ((64, 128), (200, 400))
