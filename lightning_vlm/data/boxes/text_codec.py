"""What the codecs of all families share."""

import itertools
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from lightning_vlm.data.boxes.codec import BoxCodec, Found, Written
from lightning_vlm.data.boxes.collector import Collector
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.boxes.writing import Placed, TextWriter, placed
from lightning_vlm.data.parts import Box, Located, Point, Region

_PICTURE = re.compile(r"Picture ([0-9]{1,4}): ?")
_AROUND = re.compile(r"```(?:json)?|[\s.!]+", re.IGNORECASE)
_SAY_NOTHING = {"[]", "[[]]", "{}", "none", "nothing", "null"}
_NAMES = {Box: "boxes", Point: "points", Region: "regions"}


class TextCodec(BoxCodec):
    """A codec that writes numbers x and y in turn, each so many to the width and the height.

    In a conversation of several pictures every run begins with `Picture 2: `, counted from 1, as in Qwen's
    chat templates, and is divided where the picture changes. What has none is read as of the last picture.
    """

    form: str
    """A box, as an example."""
    scale: str
    """What its numbers are."""
    whole: float = 1000
    """The number at the right or lower edge."""
    writes: ClassVar[tuple[type[Located], ...]] = (Box, Point)
    """What it can write."""
    y_first: ClassVar[bool] = False
    """Whether y stands before x."""
    not_in_labels: ClassVar[tuple[str, ...]] = ()
    """What a label can't have, since it would end there."""

    def write(self, items: Sequence[Located], views: Sequence[View]) -> Written:
        """As of `BoxCodec`."""
        text = TextWriter()
        self.check(items)
        if not items:
            text.add(self.nothing)
        if len(views) > 1 and any(_PICTURE.search(item.label or "") for item in items):
            raise ValueError("a label that names no picture as lists of boxes do")
        for image, group in itertools.groupby(placed(items, views), lambda one: one.image):
            if len(views) > 1:
                text.add(f"\nPicture {image + 1}: " if text else f"Picture {image + 1}: ")
            self.write_group(text, list(group))
        return text.written()

    def read(self, text: str, views: Sequence[View]) -> Found:
        """As of `BoxCodec`."""
        found = Collector(views)
        for piece, image in self.pictures_in(text, views):
            self.read_group(piece, image, found)
        return self.ended(text, found)

    def pictures_in(self, text: str, views: Sequence[View]) -> list[tuple[str, int]]:
        """The pieces of a text, and the number of the picture that each is about, which there may not be."""
        pieces = _PICTURE.split(text) if len(views) > 1 else [text]
        found = [(pieces[0], len(views) - 1)]
        for number, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            found.append((piece, int(number) - 1))
        return found

    @abstractmethod
    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """Write items of one picture."""

    @abstractmethod
    def read_group(self, text: str, image: int, found: Collector) -> None:
        """Read a text about one picture."""

    def check(self, items: Sequence[Located]) -> None:
        """Raise ValueError if it can't write one of some items."""
        for item in items:
            if not isinstance(item, self.writes):
                able = " and ".join(_NAMES[kind] for kind in self.writes)
                raise ValueError(f"{able}; codecs for all kinds are loc, decimals and thousandths")
            for end in (*self.tokens[:8], *self.not_in_labels):
                if end in (item.label or ""):
                    raise ValueError(f"a label without {end!r}, which would end it")

    def ended(self, text: str, found: Collector) -> Found:
        """What was found; a fault where there is nothing, and the text doesn't say so."""
        result = found.found()
        if result.items or result.faults or self._says_nothing(text):
            return result
        return Found((), ("no box",))

    def wholes(self, view: View) -> tuple[float, float]:
        """The numbers at the right and at the lower edge."""
        del view
        return self.whole, self.whole

    def digits(self, fraction: float, whole: float) -> str:
        """How a number is written."""
        return str(round(fraction * whole))

    def fraction(self, number: float, whole: float) -> float:
        """The way back."""
        return number / whole

    def write_numbers(self, text: TextWriter, one: Placed, between: str = ", ", inner: str = ", ") -> None:
        """Write the numbers of an item.

        Args:
            text: Where to.
            one: The item.
            between: What stands between two pairs of numbers.
            inner: What stands within a pair.
        """
        wholes = self.wholes(one.view)
        for place in range(len(one.numbers)):
            axis = place ^ 1 if self.y_first else place
            whole = wholes[axis % 2]
            if place:
                text.add(inner if place % 2 else between)
            text.number(self.digits(one.numbers[axis], whole), one.place, axis, whole)

    def add(self, found: Collector, numbers: Sequence[float], image: int, label: str | None) -> None:
        """Add an item of some numbers, as they are written, to what was found."""
        if self.y_first and len(numbers) % 2 == 0:
            numbers = [numbers[place ^ 1] for place in range(len(numbers))]
        self.add_in_order(found, numbers, image, label)

    def add_in_order(self, found: Collector, numbers: Sequence[float], image: int, label: str | None) -> None:
        """Add an item of some numbers of which x is known to stand before y."""
        view = found.view(image)
        if view is None:
            return
        wholes = self.wholes(view)
        fractions = [self.fraction(value, wholes[place % 2]) for place, value in enumerate(numbers)]
        found.add(fractions, image, label, 1 / min(wholes))

    def _says_nothing(self, text: str) -> bool:
        if text.strip() == self.nothing:
            return True
        for token in self.tokens[:8]:
            text = text.replace(token, "")
        return _AROUND.sub("", text).lower() in _SAY_NOTHING


def by_label(group: Sequence[Placed]) -> list[list[Placed]]:
    """Neighbours of the same label, together."""
    return [list(same) for _, same in itertools.groupby(group, lambda one: one.label)]
