"""Codecs that write numbers between tags, with a label in tags of its own before them."""

import re
from collections.abc import Sequence
from typing import ClassVar

from lightning_vlm.data.boxes.collector import NUMBER, Collector, numbers_in, of_numbers
from lightning_vlm.data.boxes.lists import ListCodec
from lightning_vlm.data.boxes.text_codec import by_label
from lightning_vlm.data.boxes.writing import Placed, TextWriter
from lightning_vlm.data.parts import Box, Located, Point, Region

_PAIR = rf"\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)"
_PAIRS = re.compile(rf"{_PAIR}(?:\s*,\s*{_PAIR})*")


class TaggedCodec(ListCodec):
    """A codec with tags.

    A label goes with what follows it directly. When read, tags may be missing, as where special tokens were
    left out of a text.
    """

    ref: ClassVar[tuple[str, str]] = ("<ref>", "</ref>")
    """What stands around a label."""
    box: ClassVar[tuple[str, str]] = ("", "")
    """What stands around numbers; nothing where they are empty."""
    more_tags: ClassVar[tuple[str, ...]] = ()
    """What may stand around numbers, too."""
    between: ClassVar[str] = ", "
    """What stands between neighbours of different labels."""

    def __init__(self) -> None:
        tags = [tag for tag in (*self.ref, *self.box, *self.more_tags) if tag]
        self._tags = re.compile("(" + "|".join(re.escape(tag) for tag in tags) + ")")
        self._opens = {*self.box[:1], *self.more_tags[:1]} - {""}
        self.not_in_labels = tuple(tags)  # type: ignore[misc]

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for place, same in enumerate(by_label(group)):
            label = same[0].label
            if place:
                text.add(", " if label is None else self.between)
            text.add("" if label is None else f"{self.ref[0]}{label}{self.ref[1]}")
            self.write_same(text, same)

    def write_same(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """Write items that share a label, or have none."""
        text.add(f"{self.box[0]}[")
        for place, one in enumerate(group):
            text.add(", [" if place else "[")
            self.write_numbers(text, one)
            text.add("]")
        text.add(f"]{self.box[1]}")

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`."""
        pieces = ["", *self._tags.split(text)]
        label: str | None = None
        for place in range(0, len(pieces), 2):
            tag, piece = pieces[place : place + 2]
            if tag in self._opens:
                self.read_tagged(piece, image, label, found, place + 2 == len(pieces))
                continue
            rest = piece
            if tag == self.ref[0]:
                label, bracket, rest = piece.partition("[")
                rest = bracket + rest
            if label is not None:
                end = _leading_list(rest)
                self.read_untagged(rest[:end], image, label, found)
                rest = rest[end:]
                label = None if rest.strip() or (end and not self.box[0]) else label
            self.read_untagged(rest, image, None, found)

    def read_tagged(self, text: str, image: int, label: str | None, found: Collector, is_last: bool) -> None:
        """Read what stands in the tags of a box, or behind its first one where the second is missing."""
        del is_last
        self.read_lists(text, image, label, found)

    def read_untagged(self, text: str, image: int, label: str | None, found: Collector) -> None:
        """Read what stands outside of tags."""
        self.read_lists(text, image, label, found)


def _leading_list(text: str) -> int:
    """Where the list that a text begins with ends, or 0.

    >>> _leading_list(" [[1, 2], [3, 4]], [5, 6]"), _leading_list("at [1, 2]")
    (17, 0)
    """
    depth = 0
    for found in re.finditer(r"[\[\]]|[^\s\[\]]+", text):
        if found[0] == "[":
            depth += 1
        elif found[0] == "]":
            depth -= 1
            if depth <= 0:
                return found.end()
        elif depth == 0:
            return 0
    return len(text) if depth else 0


class Qwen2VL(TaggedCodec):
    """Qwen2-VL: 0 to 1000, in its own tokens.

    Points stand there alone, as UI-TARS writes them, and regions of four corners between the tokens for
    quadrilaterals. https://arxiv.org/abs/2409.12191 and
    https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct/blob/main/tokenizer_config.json
    """

    name = "qwen2_vl"
    form = "<|object_ref_start|>...<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>"
    scale = "0-1000"
    writes = (Box, Point, Region)
    ref = ("<|object_ref_start|>", "<|object_ref_end|>")
    box = ("<|box_start|>", "<|box_end|>")
    more_tags = ("<|quad_start|>", "<|quad_end|>")
    tokens = (*ref, *box, *more_tags)
    nothing = "none"

    def check(self, items: Sequence[Located]) -> None:
        """As of `TextCodec`."""
        super().check(items)
        if any(isinstance(item, Region) and len(item.outline) != 8 for item in items):
            raise ValueError("boxes, points and regions of four corners")

    def write_same(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TaggedCodec`."""
        for one in group:
            tags = self.more_tags if isinstance(one.item, Region) else self.box
            text.add(f"{tags[0]}(")
            self.write_numbers(text, one, "),(", ",")
            text.add(f"){tags[1]}")

    def read_tagged(self, text: str, image: int, label: str | None, found: Collector, is_last: bool) -> None:
        """As of `TaggedCodec`."""
        if is_last and not text.rstrip().endswith((")", "]")):
            found.fault("a box that is cut off")
            return
        numbers = numbers_in(text)
        if len(numbers) in (2, 4, 8):
            self.add(found, numbers, image, label)
        else:
            found.fault(of_numbers(len(numbers)))

    def read_untagged(self, text: str, image: int, label: str | None, found: Collector) -> None:
        """As of `TaggedCodec`."""
        self.read_lists(text, image, label, found)
        for pairs in _PAIRS.finditer(text):
            numbers = numbers_in(pairs[0])
            if len(numbers) in (2, 4, 8):
                self.add(found, numbers, image, label)
            else:
                found.fault(of_numbers(len(numbers)))


class InternVL(TaggedCodec):
    """InternVL: 0 to 1000.

    https://internvl.readthedocs.io/en/latest/get_started/chat_data_format.html#grounding-detection-data
    """

    name = "internvl"
    form = "<ref>...</ref><box>[[x1, y1, x2, y2]]</box>"
    scale = "0-1000"
    writes = (Box,)
    box = ("<box>", "</box>")
    tokens = ("<ref>", "</ref>", *box)
    nothing = "<box>[]</box>"


class DeepSeek(TaggedCodec):
    """DeepSeek-VL2 and DeepSeek-OCR: 0 to 999, in their own tokens.

    https://github.com/deepseek-ai/DeepSeek-VL2 and https://github.com/deepseek-ai/DeepSeek-OCR
    """

    name = "deepseek"
    form = "<|ref|>...<|/ref|><|det|>[[x1, y1, x2, y2]]<|/det|>"
    scale = "0-999"
    whole = 999
    writes = (Box,)
    ref = ("<|ref|>", "<|/ref|>")
    box = ("<|det|>", "<|/det|>")
    tokens = (*ref, *box)
    between = "\n"
    nothing = "<|det|>[]<|/det|>"


class Thousandths(TaggedCodec):
    """`[x1, y1, x2, y2]`, `[x, y]` and `[[x, y], ...]`, 0 to 1000, for models with no format of their own.

    A label stands before each: `<ref>a cat</ref>[125, 250, 500, 1000]`.
    """

    name = "thousandths"
    form = "[x1, y1, x2, y2]"
    scale = "0-1000"
    writes = (Box, Point, Region)

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        for place, one in enumerate(group):
            text.add(self.between if place else "")
            text.add("" if one.label is None else f"{self.ref[0]}{one.label}{self.ref[1]}")
            is_region = isinstance(one.item, Region)
            text.add("[[" if is_region else "[")
            self.write_numbers(text, one, "], [" if is_region else ", ")
            text.add("]]" if is_region else "]")


class Decimals(Thousandths):
    """`[x1, y1, x2, y2]`, `[x, y]` and `[[x, y], ...]` as decimals from 0 to 1 with three places.

    LLaVA 1.5 was trained on such boxes, with two places:
    https://github.com/haotian-liu/LLaVA/issues/606#issuecomment-1774076879
    """

    name = "decimals"
    form = "[0.125, 0.250, 0.500, 1.000]"
    scale = "0-1"
    whole = 1.0

    def digits(self, fraction: float, whole: float) -> str:
        """As of `TextCodec`."""
        return f"{fraction * whole:.3f}"
