"""Pictures that look alike: a hash of what is on each, and near ones found without comparing all pairs."""

import hashlib
from typing import NamedTuple

import numpy as np
import PIL.Image

SIDE = 8
"""Bits along each side of a difference hash."""
GRID = 4
"""Cells along each side of the grid of mean colours."""
LARGEST_DISTANCE = 7
"""By how many of their 128 bits the hashes of pictures that look alike differ at most."""
LARGEST_STEP = 12
"""By how much, of 255, mean colours of such pictures differ at most."""
WINDOW = 256
"""In a band that more pictures than this share, each is compared with so many neighbours only."""
_BANDS = LARGEST_DISTANCE + 1
_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)


class Looks(NamedTuple):
    """What pictures look like.

    Args:
        bits: Array of shape [pictures, 16], uint8: the difference hashes along rows and along columns.
        colours: Array of shape [pictures, 48], uint8: the mean colours of a grid of 4×4 cells.
    """

    bits: np.ndarray
    colours: np.ndarray


def difference_hash(picture: PIL.Image.Image, columns: bool = False) -> np.ndarray:
    """Whether each cell of a picture is brighter than the one before it: dHash.

    As Neal Krawetz describes it ("Kind of like that", 2013), and as `imagehash.dhash` and `dhash_vertical`
    do.

    Args:
        picture: In any mode.
        columns: Compare each cell with the one above, instead of the one at its left.

    Returns:
        Array of shape [8, 8], bool.

    >>> picture = PIL.Image.linear_gradient("L")  # brighter from top to bottom
    >>> difference_hash(picture).any(), difference_hash(picture, columns=True).all()
    (np.False_, np.True_)
    """
    size = (SIDE, SIDE + 1) if columns else (SIDE + 1, SIDE)
    grey = picture.convert("L").resize(size, PIL.Image.Resampling.LANCZOS)
    cells = np.asarray(grey)
    return cells[1:] > cells[:-1] if columns else cells[:, 1:] > cells[:, :-1]


def looks_of(picture: PIL.Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """What one picture in mode RGB looks like: a row of each array of `Looks`."""
    both = np.concatenate([difference_hash(picture), difference_hash(picture, columns=True)])
    colours = picture.resize((GRID, GRID), PIL.Image.Resampling.BOX)
    return np.packbits(both), np.asarray(colours).reshape(-1)


def alike(looks: Looks) -> np.ndarray:
    """Groups of pictures that look alike.

    Hashes of 128 bits that differ in at most 7 have one of 8 bands of 16 bits in common (pigeonhole), so that
    only pictures which share a band are compared. Their mean colours must be close too. A group holds what
    is alike through others as well.

    Args:
        looks: Of all pictures.

    Returns:
        Array of shape [pictures], int64: for each the first picture of its group.
    """
    number = len(looks.bits)
    roots = np.arange(number)
    bands = np.ascontiguousarray(looks.bits).view(np.uint16).reshape(number, _BANDS)
    words = np.ascontiguousarray(looks.bits).view(np.uint64).reshape(number, 2)
    for band in range(_BANDS):
        order = np.lexsort((words[:, 1], words[:, 0], bands[:, band]))
        values = bands[order, band]
        first = np.arange(number)
        for shift in range(1, min(WINDOW, number)):
            first = first[first + shift < number]
            first = first[values[first] == values[first + shift]]
            if not len(first):
                break
            one, other = order[first], order[first + shift]
            apart = roots[one] != roots[other]
            one, other = one[apart], other[apart]
            near = _near(looks, one, other)
            for left, right in zip(one[near].tolist(), other[near].tolist(), strict=True):
                _join(roots, left, right)
            if near.any():
                roots = _flat(roots)
    return roots


def hash_of(*contents: bytes) -> int:
    """64 bits that tell contents from others."""
    digest = hashlib.blake2b(digest_size=8)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")


def _near(looks: Looks, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    distances = _ONES[looks.bits[one] ^ looks.bits[other]].sum(1)
    near = distances <= LARGEST_DISTANCE
    colours = looks.colours[one[near]].astype(np.int16) - looks.colours[other[near]]
    near[near] = np.abs(colours).max(1) <= LARGEST_STEP
    return near


def _flat(roots: np.ndarray) -> np.ndarray:
    """The same groups, where each picture knows the first of its group at once."""
    while not np.array_equal(roots[roots], roots):
        roots = roots[roots]
    return roots


def _root(roots: np.ndarray, place: int) -> int:
    while roots[place] != place:
        roots[place] = roots[roots[place]]
        place = int(roots[place])
    return place


def _join(roots: np.ndarray, one: int, other: int) -> None:
    first, second = sorted((_root(roots, one), _root(roots, other)))
    roots[second] = first
