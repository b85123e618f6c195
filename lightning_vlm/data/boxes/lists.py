"""Codecs that write numbers in square brackets: JSON, and plain lists."""

import itertools
import json
from collections.abc import Sequence
from typing import ClassVar

from lightning_vlm.data.boxes.codec import Found, Written
from lightning_vlm.data.boxes.collector import Collector, numbers_in, of_numbers
from lightning_vlm.data.boxes.lenient import Listed, Record, records_in
from lightning_vlm.data.boxes.text_codec import TextCodec
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.boxes.writing import Placed, TextWriter, placed
from lightning_vlm.data.parts import Box, Located, Region

_BOX_KEYS = {"bbox_2d", "box_2d", "bbox", "bboxes", "box", "boxes", "bounding_box"}
_POINT_KEYS = {"point_2d", "point", "points"}
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
_LABEL_KEYS = ("label", "name", "text_content", "category", "class", "object")


class ListCodec(TextCodec):
    """A codec whose numbers stand in square brackets."""

    def read_lists(self, text: str, image: int, label: str | None, found: Collector) -> None:
        """Read all lists of a text, with or without keys."""
        for record in records_in(text):
            self._read_record(record, image, label, found)

    def read_group(self, text: str, image: int, found: Collector) -> None:
        """As of `TextCodec`."""
        self.read_lists(text, image, None, found)

    def _read_record(self, record: Record, image: int, label: str | None, found: Collector) -> None:
        if isinstance(number := record.values.get("image"), float) and number == number:
            image = int(min(max(number, 0), 1e6)) - 1
        for key in _LABEL_KEYS:
            value = record.values.get(key)
            if value is not None:
                label = value if isinstance(value, str) else f"{value:g}"
                break
        lists = [one for one in record.lists if record.is_bare or one.key in _BOX_KEYS | _POINT_KEYS]
        lists += [
            Listed(key, tuple(numbers_in(str(value))), 0, True)
            for key, value in record.values.items()
            if key in _BOX_KEYS | _POINT_KEYS
        ]
        for names in _CORNERS:
            values = [record.values.get(name) for name in names]
            if all(isinstance(value, float) for value in values):
                self.add_in_order(found, values, image, label)  # type: ignore[arg-type]
                return
        if not lists:
            lists = [one for one in record.lists if len(one.numbers) == 4]
        for parent, group in itertools.groupby(lists, lambda one: one.parent):
            self._read_siblings(list(group), bool(parent), image, label, found)

    def _read_siblings(
        self, lists: Sequence[Listed], is_nested: bool, image: int, label: str | None, found: Collector
    ) -> None:
        """Read lists that stand in one list, or in none."""
        pairs = [one for one in lists if len(one.numbers) == 2]
        if Region in self.writes and is_nested and len(pairs) == len(lists) >= 3:
            self.add(found, [number for one in lists for number in one.numbers], image, label)
            return
        for one in lists:
            self._read_list(one, image, label, found)

    def _read_list(self, one: Listed, image: int, label: str | None, found: Collector) -> None:
        count = len(one.numbers)
        name = "point" if one.key in _POINT_KEYS else "box"
        if not one.is_whole:
            if count > 2 or one.key is not None:
                found.fault(f"a {name} that is cut off")
        elif (one.key in _POINT_KEYS and count != 2) or (one.key in _BOX_KEYS and count != 4):
            found.fault(of_numbers(count, f"a {name}"))
        elif count != 1:  # one number in brackets is a footnote
            self.add(found, one.numbers, image, label)


class _JsonCodec(ListCodec):
    """`[{"bbox_2d": [x1, y1, x2, y2], "label": "a cat"}]`.

    Where there are several pictures, `"image": 2` says which one, counted from 1.
    """

    box_key: ClassVar[str] = "bbox_2d"
    point_key: ClassVar[str] = "point_2d"

    def write(self, items: Sequence[Located], views: Sequence[View]) -> Written:
        """As of `BoxCodec`."""
        self.check(items)
        text = TextWriter()
        if not items:
            text.add(self.nothing)
        else:
            self.write_objects(text, list(placed(items, views)), len(views) > 1)
        return text.written()

    def write_group(self, text: TextWriter, group: Sequence[Placed]) -> None:
        """As of `TextCodec`."""
        self.write_objects(text, group, False)

    def write_objects(self, text: TextWriter, group: Sequence[Placed], has_image: bool) -> None:
        """Write a list of objects."""
        text.add("[")
        for place, one in enumerate(group):
            key = self.box_key if isinstance(one.item, Box) else self.point_key
            text.add(f'{", " if place else ""}{{"{key}": [')
            self.write_numbers(text, one)
            text.add("]")
            if one.label is not None:
                text.add(f', "label": {json.dumps(one.label, ensure_ascii=False)}')
            if has_image:
                text.add(f', "image": {one.image + 1}')
            text.add("}")
        text.add("]")

    def read(self, text: str, views: Sequence[View]) -> Found:
        """As of `BoxCodec`."""
        found = Collector(views)
        self.read_group(text, found.last_image, found)
        return self.ended(text, found)


class Qwen25VL(_JsonCodec):
    """Qwen2.5-VL: pixels of the resized picture, in JSON.

    Also points. https://github.com/QwenLM/Qwen3-VL/blob/main/cookbooks/spatial_understanding.ipynb and
    https://github.com/QwenLM/Qwen3-VL/blob/main/qwen-vl-finetune/README.md
    """

    name = "qwen2_5_vl"
    form = '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]'
    scale = "pixels of the resized picture"

    def wholes(self, view: View) -> tuple[float, float]:
        """As of `TextCodec`."""
        return max(view.seen[0], 1), max(view.seen[1], 1)


class Qwen3VL(_JsonCodec):
    """Qwen3-VL and Qwen3.5: 0 to 1000, in JSON.

    Also points. https://github.com/QwenLM/Qwen3-VL/blob/main/cookbooks/2d_grounding.ipynb
    """

    name = "qwen3_vl"
    form = '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]'
    scale = "0-1000"


class Gemma(_JsonCodec):
    """Gemma 3 and 4: y before x, 0 to 1000, in JSON, as Gemini writes it.

    Also points. Of Gemma 3 Google says no more than that it likely does so
    (https://huggingface.co/google/gemma-3-4b-it/discussions/38).
    https://ai.google.dev/gemini-api/docs/image-understanding and
    https://cloud.google.com/vertex-ai/generative-ai/docs/bounding-box-detection
    """

    name = "gemma"
    form = '[{"box_2d": [y1, x1, y2, x2], "label": "..."}]'
    scale = "0-1000"
    box_key = "box_2d"
    point_key = "point"
    y_first = True


class Glm(_JsonCodec):
    """GLM-4.xV: 0 to 1000, as lists, and with labels in JSON; in the tokens that mark the answer itself.

    https://docs.z.ai/guides/vlm/glm-4.5v asks for `[[xmin,ymin,xmax,ymax]]`, and
    https://radixarkai.mintlify.app/docs/cookbook/autoregressive/GLM/GLM-4.6V shows an answer with the tokens.
    """

    name = "glm"
    form = "<|begin_of_box|>[[x1,y1,x2,y2]]<|end_of_box|>"
    scale = "0-1000"
    tokens = ("<|begin_of_box|>", "<|end_of_box|>")
    nothing = "<|begin_of_box|>[]<|end_of_box|>"

    def write_objects(self, text: TextWriter, group: Sequence[Placed], has_image: bool) -> None:
        """Write a list of objects, or a list of lists where none has a label."""
        text.add(self.tokens[0])
        if has_image or any(one.label is not None for one in group):
            super().write_objects(text, group, has_image)
        else:
            text.add("[")
            for place, one in enumerate(group):
                text.add(",[" if place else "[")
                self.write_numbers(text, one, ",", ",")
                text.add("]")
            text.add("]")
        text.add(self.tokens[1])
