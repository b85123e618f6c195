"""Codecs whose numbers are tokens of their own."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import ClassVar

from lightning_vlm.data.boxes.collector import Collector, of_numbers
from lightning_vlm.data.boxes.text_codec import TextCodec, by_label
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.boxes.writing import Placed, TextWriter
from lightning_vlm.data.parts import Box, Point, Region

_RUN = re.compile(r"(?:<loc_?[0-9]+>\s*)+")
_TOKEN = re.compile(r"<loc_?([0-9]+)>")
_POLYGON = re.compile(r"<poly>|</poly>|<sep>")


def _values(run: str) -> list[float]:
    return [float(found) for found in _TOKEN.findall(run)]


class _Bins(TextCodec):
    """A codec with a token for each of `count` numbers."""

    count: int = 1000
    pattern: ClassVar[str] = "<loc_{}>"
    nothing = "none"

    def __init__(self) -> None:
        self.bins = tuple(self.pattern.format(value) for value in range(self.count))
        self.tokens = (*type(self).tokens, *self.bins)

    def digits(self, fraction: float, whole: float) -> str:
        """As of `TextCodec`."""
        return self.pattern.format(min(round(fraction * whole), self.count - 1))

    def add_run(self, found: Collector, numbers: Sequence[float], image: int, label: str | None) -> None:
        """Add the boxes of a run of tokens, four to each."""
        if len(numbers) % 4:
            found.fault(of_numbers(len(numbers)))
            return
        for place in range(0, len(numbers), 4):
            self.add(found, numbers[place : place + 4], image, label)


class PaliGemma(_Bins):
    """PaliGemma: y before x in tokens of 1,024 bins, then the label; `;` between them.

    https://ai.google.dev/gemma/docs/paligemma/prompt-system-instructions and
    https://github.com/google-research/big_vision/blob/main/big_vision/pp/proj/paligemma/segmentation.py,
    which rounds 1023 times a fraction. Regions have tokens of their own (`<seg000>`), which are the codes of
    a network and not written here.
    """

    name = "paligemma"
    form = "<loc0250><loc0100><loc0500><loc0700> ... ; ..."
    scale = "0-1023, y first"
    whole = 1023
    count = 1024
    pattern = "<loc{:04d}>"
    writes = (Box,)
    y_first = True
    not_in_labels = (";", "<loc", "<seg")

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for place, one in enumerate(group):
            text.add(" ; " if place else "")
            self.write_numbers(text, one, "", "")
            text.add(f" {one.label}" if one.label else "")

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`."""
        runs = list(_RUN.finditer(text))
        for run, following in itertools.zip_longest(runs, runs[1:]):
            behind = text[run.end() : following.start() if following else len(text)]
            behind = re.sub(r"<seg[0-9]+>", "", behind)
            label = re.split(r"[;\n]|<loc", behind, maxsplit=1)[0].strip()
            self.add_run(found, _values(run[0]), image, label or None)


class Florence2(_Bins):
    """Florence-2: the label, then tokens of 1,000 bins, each read as its middle.

    Regions stand between `<poly>` and `</poly>`. `Florence2PostProcessor` of transformers reads them:
    https://github.com/huggingface/transformers/blob/main/src/transformers/models/florence2/processing_florence2.py
    """

    name = "florence2"
    form = "...<loc_100><loc_250><loc_700><loc_500>"
    scale = "0-999"
    writes = (Box, Region)
    tokens = ("<poly>", "</poly>", "<sep>")
    not_in_labels = ("<", "\n")

    def digits(self, fraction: float, whole: float) -> str:
        """As of `TextCodec`."""
        return self.pattern.format(min(math.floor(fraction * whole), self.count - 1))

    def fraction(self, number: float, whole: float) -> float:
        """As of `TextCodec`."""
        return (number + 0.5) / whole

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for place, same in enumerate(by_label(group)):
            text.add(same[0].label or (", " if place else ""))
            for one in same:
                is_region = isinstance(one.item, Region)
                text.add("<poly>" if is_region else "")
                self.write_numbers(text, one, "", "")
                text.add("</poly>" if is_region else "")

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`."""
        label: str | None = None
        end = 0
        in_polygon = False
        for run in _RUN.finditer(text):
            before = text[end : run.start()]
            end = run.end()
            for tag in _POLYGON.findall(before):
                in_polygon = tag == "<poly>" or (tag == "<sep>" and in_polygon)
            words = (
                _POLYGON.sub("", before).replace("</s>", "").replace("<s>", "").rpartition("\n")[2].strip()
            )
            label = words.strip(",;: ") or None if words else label
            numbers = _values(run[0])
            if in_polygon and len(numbers) >= 6:
                self.add(found, numbers, image, label)
            else:
                self.add_run(found, numbers, image, label)


class Locations(_Bins):
    """Tokens of bins for any model, from 0 to 999: `<ref>cat</ref><loc_10><loc_25><loc_70><loc_500>`.

    Two are a point, four a box, and six or more the outline of a region; the next one follows after a comma.
    The tokens are added to a tokenizer that has none, as many as one likes: fewer of them are learned from
    less data, and tell places less exactly.

    Args:
        bins: How many there are to a side.
    """

    name = "loc"
    form = "<loc_100><loc_250><loc_700><loc_500>"
    writes = (Box, Point, Region)
    not_in_labels = ("<ref>", "</ref>", "<loc")

    def __init__(self, bins: int = 1000) -> None:
        self.count = bins
        self.whole = bins - 1
        self.scale = f"0-{bins - 1}"
        super().__init__()

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for place, one in enumerate(group):
            text.add(", " if place else "")
            text.add(f"<ref>{one.label}</ref>" if one.label else "")
            self.write_numbers(text, one, "", "")

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`."""
        end = 0
        for run in _RUN.finditer(text):
            before = text[end : run.start()].rstrip()
            end = run.end()
            label = None
            if before.endswith("</ref>"):
                label = before[: -len("</ref>")].rpartition("<ref>")[2].strip() or None
            self.add(found, _values(run[0]), image, label)


_PATCHES = re.compile(r"(</?phrase>|</?object>|</delimiter_of_multi_objects/>|<patch_index_[0-9]+>)")


class Kosmos2(TextCodec):
    """Kosmos-2: the upper left and the lower right of the cells of a grid that a box covers.

    A token holds x and y at once, so that no token is a coordinate of its own for losses. Corners are read in
    the middle of their cells, and those of a box in one row or column of cells at the edges of these: such a
    box may be up to a cell too large on either side. `Kosmos2Processor` of transformers does the same:
    https://github.com/huggingface/transformers/blob/main/src/transformers/models/kosmos2/processing_kosmos2.py

    Args:
        grid: How many cells there are to a side.
    """

    name = "kosmos2"
    form = "<phrase>...</phrase><object><patch_index_0044><patch_index_0863></object>"
    scale = "a grid of 32x32"
    writes = (Box,)
    nothing = "none"
    not_in_labels = ("<", ">")

    def __init__(self, grid: int = 32) -> None:
        self.grid = grid
        tags = ("<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>")
        self.bins = tuple(f"<patch_index_{number:04d}>" for number in range(grid * grid))
        self.tokens = (*tags, *self.bins)

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for place, same in enumerate(by_label(group)):
            unlabelled = ", " if place else ""
            text.add(f"<phrase>{same[0].label}</phrase>" if same[0].label else unlabelled)
            corners = [self._corners(one.numbers) for one in same]
            pairs = [f"<patch_index_{first:04d}><patch_index_{last:04d}>" for first, last in corners]
            text.add(f"<object>{'</delimiter_of_multi_objects/>'.join(pairs)}</object>")

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`."""
        pieces = ["", *_PATCHES.split(text)]
        label: str | None = None
        cells: list[int] = []
        for tag, piece in zip(pieces[::2], pieces[1::2], strict=True):
            if tag.startswith("<patch"):
                cells.append(int(tag[len("<patch_index_") : -1][-9:]))
            elif tag == "<phrase>":
                label = piece.strip() or None
            if len(cells) == 2:
                self._add_cells(cells, image, label, found)
            if cells and (len(cells) == 2 or piece.strip() or not tag.startswith("<patch")):
                if len(cells) != 2:
                    found.fault("a box of one corner")
                cells = []
            if piece.strip() and tag != "<phrase>":
                label = None
        if cells:
            found.fault("a box that is cut off")

    def wholes(self, view: View) -> tuple[float, float]:
        """As of `TextCodec`."""
        del view
        return self.grid, self.grid

    def _corners(self, numbers: Sequence[float]) -> tuple[int, int]:
        x1, y1, x2, y2 = (value * self.grid for value in numbers)
        last = self.grid - 1
        column, row = min(math.floor(x1), last), min(math.floor(y1), last)
        right, lower = max(math.ceil(x2 - 1), column), max(math.ceil(y2 - 1), row)
        return row * self.grid + column, lower * self.grid + right

    def _add_cells(self, cells: Sequence[int], image: int, label: str | None, found: Collector) -> None:
        if max(cells) >= self.grid**2:
            found.fault("a box outside of the picture")
            return
        (y1, x1), (y2, x2) = (divmod(cell, self.grid) for cell in cells)
        near, far = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
        self.add(found, (x1 + near, y1 + near, x2 + far, y2 + far), image, label)
