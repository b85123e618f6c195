"""Boxes as lists of whole thousandths, for models that have no way of their own."""

import re
from collections.abc import Sequence

from lightning_vlm.data.boxes.codec import BoxCodec, Coordinate, Found, Written
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Located, Point

_LIST = re.compile(r"\[([^\[\]]*)\]")
_WHOLE = 1000


class Thousandths(BoxCodec):
    """`[x1, y1, x2, y2]` and `[x, y]`, from 0 to 1000 of what the model sees, without labels.

    >>> Thousandths().write([Box((0.125, 0.25, 0.5, 1.0), image=0)], [View((64, 48), (64, 48))]).text
    '[125, 250, 500, 1000]'
    """

    name = "thousandths"

    def write(self, items: Sequence[Located], views: Sequence[View]) -> Written:
        """As of `BoxCodec`."""
        text = "" if items else self.nothing
        coordinates = []
        for place, item in enumerate(items):
            if not isinstance(item, Box | Point):
                raise ValueError("boxes and points")
            text += ", [" if text else "["
            for axis, value in enumerate(views[item.image or 0].to_seen(item.numbers)):
                text += ", " if axis else ""
                number = str(round(_WHOLE * min(max(value, 0), 1)))
                coordinates.append(Coordinate(len(text), len(text) + len(number), place, axis, _WHOLE))
                text += number
            text += "]"
        return Written(text, tuple(coordinates))

    def read(self, text: str, views: Sequence[View]) -> Found:
        """As of `BoxCodec`."""
        items: list[Located] = []
        faults = []
        if text.strip() == self.nothing:
            return Found(())
        for found in _LIST.finditer(text):
            numbers = re.findall(r"[0-9]+", found[1])
            if len(numbers) not in (2, 4):
                faults.append(f"a box of {len(numbers)} numbers")
                continue
            values = views[0].from_seen(tuple(int(number) / _WHOLE for number in numbers))
            items.append(Box(values, image=0) if len(values) == 4 else Point(values, image=0))  # type: ignore[arg-type]
        if not items and not faults:
            faults.append("no box")
        return Found(tuple(items), tuple(faults))
