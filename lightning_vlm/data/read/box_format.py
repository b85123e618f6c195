"""`data.box_format`: which numbers stand for a place where the data doesn't say it: their unit and order."""

from collections.abc import Sequence
from typing import NamedTuple

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

UNITS: dict[str, float] = {"pixels": 1, "fractions": 1, "0-1000": 1000, "0-999": 999, "0-100": 100}
"""Each unit, and its number at the right or lower edge of a picture (pixels: what one is)."""
ORDERS = ("xyxy", "yxyx", "xywh")
"""Which number of a box comes first. Points and outlines are y, x in turn where it is `yxyx`."""
WORDS = "text"
"""The format of those who want what looks like boxes in texts to stay words."""
EXAMPLES = "data.box_format: pixels, fractions, 0-1000, 0-999 or 0-100 (with xywh or yxyx behind it)"
"""How errors say what to write."""


class BoxFormat(NamedTuple):
    """The unit and the order of numbers.

    Args:
        unit: One of `UNITS`; pixels are those of the upright picture as it came.
        order: One of `ORDERS`; None where it wasn't said, which means `xyxy` except in columns.
    """

    unit: str
    order: str | None = None

    @classmethod
    def read(cls, text: str | None) -> "BoxFormat | None":
        """What the user wrote, such as `pixels` or `0-1000 yxyx`; None for nothing.

        Raises:
            UserError: An unknown unit or order.

        >>> BoxFormat.read("pixels xywh")
        BoxFormat(unit='pixels', order='xywh')
        >>> BoxFormat.read("pixel")
        Traceback (most recent call last):
        lightning_vlm.errors.UserError: data.box_format is 'pixel'; choose one of pixels, fractions, 0-1000,
        0-999, 0-100, text, with xyxy, yxyx, xywh behind it for the order; did you mean pixels?
        """
        if text is None:
            return None
        unit, _, order = str(text).strip().partition(" ")
        order = order.strip()
        is_known = unit in UNITS and order in ("", *ORDERS)
        if is_known or (unit == WORDS and not order):
            return cls(unit, order or None)
        known = ", ".join((*UNITS, WORDS))
        hint = did_you_mean(order, ORDERS) if unit in UNITS else did_you_mean(unit, (*UNITS, WORDS))
        raise UserError(
            f"data.box_format is {text!r}; choose one of {known}, with {', '.join(ORDERS)} behind it for the "
            f"order{hint}"
        )

    @property
    def is_words(self) -> bool:
        """Whether what looks like boxes stays words."""
        return self.unit == WORDS

    @property
    def pixels(self) -> bool:
        """Whether numbers are pixels."""
        return self.unit == "pixels"

    def numbers(self, written: Sequence[float]) -> tuple[float, ...]:
        """Numbers as x and y in turn, in pixels or in fractions of the picture.

        >>> BoxFormat("0-1000", "yxyx").numbers([250, 125, 500, 1000])
        (0.125, 0.25, 1.0, 0.5)
        >>> BoxFormat("pixels", "xywh").numbers([10, 20, 30, 40])
        (10.0, 20.0, 40.0, 60.0)
        """
        whole = UNITS[self.unit]
        values = [value / whole for value in written]
        if self.order == "yxyx":
            values = [values[place ^ 1] for place in range(len(values))]
        elif self.order == "xywh" and len(values) == 4:
            x, y, width, height = values
            values = [x, y, x + width, y + height]
        return tuple(values)
