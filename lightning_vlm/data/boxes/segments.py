"""The codec of masks: a label, and a token whose hidden state a mask is made of."""

from collections.abc import Sequence
from typing import NamedTuple

from lightning_vlm.data.boxes.collector import Collector
from lightning_vlm.data.boxes.text_codec import TextCodec
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.boxes.writing import Placed, TextWriter
from lightning_vlm.data.parts import Box, Region

SEG = "<seg>"
"""The token that stands for a mask, as in LISA (https://arxiv.org/abs/2308.00692)."""


class Named(NamedTuple):
    """What a token of a mask stands behind.

    Args:
        label: Its label, if any.
        image: The number of its picture.
    """

    label: str | None
    image: int


class Segments(TextCodec):
    """A label, then `<seg>`: `red circle<seg>`. `model.mask_head` makes a mask of the hidden state there.

    Its text says of no place where it is, so that `read` finds nothing in it; `named` says what is asked for.
    """

    name = "seg"
    form = f"...{SEG}"
    scale = "whose masks are made by model.mask_head"
    writes = (Box, Region)
    tokens = (SEG,)
    bins = (SEG,)
    nothing = "none"
    not_in_labels = (", ", "\n")

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for place, one in enumerate(group):
            text.add(", " if place else "")
            text.add(f"{one.label or ''}{SEG}")

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`; what a text has is no place."""

    def named(self, text: str, views: Sequence[View]) -> list[Named]:
        """What each `<seg>` of a text stands for, in order.

        >>> Segments().named("red circle<seg>, blue ring<seg>.", [View((8, 8), (8, 8))])
        [Named(label='red circle', image=0), Named(label='blue ring', image=0)]
        """
        found = []
        for piece, image in self.pictures_in(text, views):
            *before, _ = piece.split(SEG)
            for words in before:
                label = words.rpartition("\n")[2].rpartition(", ")[2].strip(" ,.")
                found.append(Named(label or None, image))
        return found
