"""Codecs of the Molmo families, which point."""

import itertools
import re
from collections.abc import Sequence

from lightning_vlm.data.boxes.codec import Found, Written
from lightning_vlm.data.boxes.collector import NUMBER, Collector, numbers_in, of_numbers
from lightning_vlm.data.boxes.text_codec import TextCodec, by_label
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.boxes.writing import Placed, TextWriter, placed
from lightning_vlm.data.parts import Located, Point

_ELEMENT = re.compile(r"<(?:points?|tracks)(\s[^<>]*)(>?)")
_COORDS = re.compile(r"coords=\"([^\"]*)(\"?)")
_ALT = re.compile(r"alt=\"([^\"]*)")
_AXIS = re.compile(rf"\b([xy])[0-9]{{0,6}}=\"?\s*({NUMBER})\"?")
_NONE = "There are none."


class _Pointing(TextCodec):
    """Points in an element with attributes, whose text is the label."""

    writes = (Point,)
    nothing = _NONE
    not_in_labels = ("<", '"')

    def read(self, text: str, views: Sequence[View]) -> Found:
        """As of `BoxCodec`."""
        found = Collector(views)
        for element in _ELEMENT.finditer(text):
            is_alone = element[1].rstrip().endswith("/") or not element[2]
            end = -1 if is_alone else text.find("<", element.end())
            alt = _ALT.search(element[1])
            label = text[element.end() : end] if end >= 0 else (alt[1] if alt else "")
            self.read_element(element[1], bool(element[2]), label.strip() or None, found)
        return self.ended(text, found)

    def read_element(self, attributes: str, is_whole: bool, label: str | None, found: Collector) -> None:
        """Read the points of one element."""
        raise NotImplementedError

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`; it reads whole texts."""
        raise NotImplementedError


class Molmo2(_Pointing):
    """Molmo 2: points from 0 to 1000, each after its number, and those of a picture after its number from 1.

    https://huggingface.co/allenai/Molmo2-8B, "Multi-Image Point QA": three digits or four to a number, `;`
    between pictures.
    """

    name = "molmo2"
    form = '<points coords="1 1 x y 2 x y">...</points>'
    scale = "0-1000"

    def write(self, items: Sequence[Located], views: Sequence[View]) -> Written:
        """As of `BoxCodec`."""
        self.check(items)
        text = TextWriter()
        if not items:
            text.add(self.nothing)
        self.write_group(text, list(placed(items, views)))
        return text.written()

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for same in by_label(group):
            text.add('<points coords="')
            number = 0
            for place, (image, ones) in enumerate(itertools.groupby(same, lambda one: one.image)):
                text.add(f";{image + 1}" if place else f"{image + 1}")
                for one in ones:
                    number += 1
                    text.add(f" {number} ")
                    self.write_numbers(text, one, " ", " ")
            text.add(f'">{same[0].label or ""}</points>')

    def digits(self, fraction: float, whole: float) -> str:
        """As of `TextCodec`."""
        return f"{round(fraction * whole):03d}"

    def read_element(self, attributes: str, is_whole: bool, label: str | None, found: Collector) -> None:
        """As of `_Pointing`."""
        coords = _COORDS.search(attributes)
        if coords is None or not (is_whole or coords[2]):
            found.fault("points that are cut off" if not is_whole else "points without numbers")
            return
        for of_picture in re.split(r"[;:,\t]", coords[1]):
            numbers = numbers_in(of_picture)
            if len(numbers) % 3 != 1:
                if numbers:
                    found.fault(of_numbers(len(numbers), "points"))
                continue
            image = int(min(max(numbers[0], 0), 1e6)) - 1 if numbers[0] == numbers[0] else -1
            for place in range(1, len(numbers), 3):
                self.add(found, numbers[place + 1 : place + 3], image, label)


class Molmo(_Pointing):
    """Molmo (the first): points in hundredths, with one decimal.

    https://huggingface.co/allenai/Molmo-7B-D-0924. It took one picture; in a conversation of several, all
    points of a run must lie in the last one.
    """

    name = "molmo"
    form = '<point x="63.5" y="44.5" alt="...">...</point>'
    scale = "0-100"
    whole = 100

    def write(self, items: Sequence[Located], views: Sequence[View]) -> Written:
        """As of `BoxCodec`."""
        self.check(items)
        text = TextWriter()
        if not items:
            text.add(self.nothing)
        group = list(placed(items, views))
        if any(one.image != len(views) - 1 for one in group):
            raise ValueError("points in the last picture")
        self.write_group(text, group)
        return text.written()

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for same in by_label(group):
            label = same[0].label or ""
            name = "points" if len(same) > 1 else "point"
            text.add(f"<{name}")
            for number, one in enumerate(same, 1):
                for axis, axis_name in enumerate("xy"):
                    text.add(f' {axis_name}{number if len(same) > 1 else ""}="')
                    text.number(self.digits(one.numbers[axis], self.whole), one.place, axis, self.whole)
                    text.add('"')
            text.add(f' alt="{label}">{label}</{name}>')

    def digits(self, fraction: float, whole: float) -> str:
        """As of `TextCodec`."""
        return f"{fraction * whole:.1f}"

    def read_element(self, attributes: str, is_whole: bool, label: str | None, found: Collector) -> None:
        """As of `_Pointing`."""
        axes = _AXIS.findall(attributes)
        names = "".join(name for name, _ in axes)
        if not is_whole or not names or names != "xy" * (len(names) // 2):
            found.fault("points that are cut off" if not is_whole else of_numbers(len(names), "points"))
            return
        for (_, x), (_, y) in zip(axes[::2], axes[1::2], strict=True):
            self.add(found, (float(x), float(y)), found.last_image, label)
