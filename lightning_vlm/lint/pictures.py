"""What is on the pictures of data: each file is decoded once, small, and its data read to the end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from torch.utils.data import Dataset

from lightning_vlm.data.conversation import Conversation, Conversations, Image
from lightning_vlm.data.images import load_small
from lightning_vlm.errors import DataError
from lightning_vlm.lint.finding import Finding
from lightning_vlm.lint.hashes import GRID, SIDE, looks_of
from lightning_vlm.lint.rows import PictureUse, row_of

AT_ONCE = 32
"""How many pictures a worker opens at a time."""
SMALL = 128
"""The longer side of a picture as it is looked at."""
THUMBNAIL = 96
"""The longer side of a picture as it is shown."""
_EVEN = 10
"""By how much, of 255, the colours of a picture of one colour differ at most."""
_RATIO = 10
_LEAST_SIDE = 10
_MOST_PIXELS = 16_000_000


class Pictures(NamedTuple):
    """What is known of some pictures.

    Args:
        sizes: Array of shape [pictures, 2], int32; 0 for one that can't be opened.
        bits: As of `Looks`.
        colours: As of `Looks`.
        plain: Array of shape [pictures], bool: whether nothing is on it that could tell it from others.
        findings: What is wrong, each with the number of its picture here, and the picture if it can be shown.
    """

    sizes: np.ndarray
    bits: np.ndarray
    colours: np.ndarray
    plain: np.ndarray
    findings: list[tuple[int, Finding, PIL.Image.Image | None]]


class PictureReader(Dataset):
    """Pictures of samples in groups of `AT_ONCE`.

    Args:
        samples: The samples of each split.
        uses: Of each picture, its split, and the first sample that has it.
    """

    def __init__(self, samples: dict[str, Conversations], uses: Sequence[tuple[str, PictureUse]]) -> None:
        self._samples = samples
        self._uses = uses

    def __len__(self) -> int:
        return -(-len(self._uses) // AT_ONCE)

    def __getitem__(self, group: int) -> Pictures:
        uses = self._uses[group * AT_ONCE :][:AT_ONCE]
        number = len(uses)
        sizes = np.zeros((number, 2), np.int32)
        bits = np.zeros((number, 2 * SIDE * SIDE // 8), np.uint8)
        colours = np.zeros((number, 3 * GRID * GRID), np.uint8)
        plain = np.ones(number, bool)
        findings: list[tuple[int, Finding, PIL.Image.Image | None]] = []
        last: tuple[tuple[str, int], Conversation] | None = None
        for place, (split, use) in enumerate(uses):
            if last is None or last[0] != (split, use.sample):
                last = (split, use.sample), self._samples[split][use.sample]
            conversation = last[1]
            image, key = _at(conversation, use.place)
            source = row_of(conversation.source)
            try:
                small, sizes[place] = load_small(image, source, key, SMALL)
            except DataError as error:
                findings.append((place, Finding.of_error(error, split, "unreadable_picture"), None))
                continue
            bits[place], colours[place] = looks_of(small)
            odd = list(_odd(small, tuple(sizes[place].tolist())))
            plain[place] = any(kind == "blank_picture" for kind, _ in odd)
            for kind, found in odd:
                shown = small.copy()
                shown.thumbnail((THUMBNAIL, THUMBNAIL))
                finding = Finding(kind, split, source, key, f"{_name(image)}, {found}")
                if finding.about.drops:
                    finding = finding._replace(drops=(source,))
                findings.append((place, finding, shown))
        return Pictures(sizes, bits, colours, plain, findings)


def _at(conversation: Conversation, number: int) -> tuple[Image, str]:
    """A picture of a conversation, and its key there."""
    for index, message in enumerate(conversation.messages):
        for place, part in enumerate(message.parts):
            if isinstance(part, Image):
                if not number:
                    return part, f"messages[{index}].content[{place}]"
                number -= 1
    raise IndexError(number)


def _name(image: Image) -> str:
    if image.data is not None:
        return f"a picture of {len(image.data):,} bytes"
    return str(image.path or image.url)


def _odd(small: PIL.Image.Image, size: tuple[int, int]) -> list[tuple[str, str]]:
    """The kinds of what is odd about a picture that can be opened, and words for them.

    >>> _odd(PIL.Image.new("RGB", (64, 4), "black"), (640, 40))
    [('blank_picture', 'which is black'), ('extreme_ratio', 'of 640×40 pixels')]
    """
    found = []
    colours = np.asarray(small).reshape(-1, 3)
    least, most = colours.min(0), colours.max(0)
    if (most.astype(int) - least <= _EVEN).all():
        mean = colours.mean(0)
        red, green, blue = mean.round().astype(int).tolist()
        name = "black" if mean.max() < 2 * _EVEN else "white" if mean.min() > 255 - 2 * _EVEN else ""
        found.append(("blank_picture", f"which is {name}" if name else f"all of rgb({red}, {green}, {blue})"))
    width, height = size
    said = f"of {width:,}×{height:,} pixels"
    if max(size) > _RATIO * min(size):
        found.append(("extreme_ratio", said))
    if min(size) < _LEAST_SIDE:
        found.append(("tiny_picture", said))
    if width * height > _MOST_PIXELS:
        found.append(("huge_picture", said))
    return found
