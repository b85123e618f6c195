"""Pictures of a sample with what lies in them: as they came, and as the model sees them."""

from dataclasses import replace
from typing import NamedTuple

import PIL.Image

from lightning_vlm.data.boxes.codec import BoxCodec
from lightning_vlm.data.boxes.pixels import in_pixels
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.conversation import Conversation, Image, Located
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Renderer

_BESIDE = "#808080"
"""The colour of what the processor adds around a picture."""


class Mark(NamedTuple):
    """What is drawn on a picture.

    Args:
        number: From 1 on, over all pictures of the sample.
        kind: `box`, `point` or `region`.
        numbers: x and y in turn, in fractions of the picture that is shown.
        label: What is there; empty for no label.
        is_answer: Whether it is part of an answer.
        words: Where it is, as text.
    """

    number: int
    kind: str
    numbers: tuple[float, ...]
    label: str
    is_answer: bool
    words: str

    def points(self, width: int, height: int) -> list[tuple[float, float]]:
        """Its corners on a picture of so many pixels.

        >>> Mark(1, "point", (0.5, 0.25), "", True, "").points(200, 100)
        [(100.0, 25.0)]
        """
        numbers = iter(self.numbers)
        return [(x * width, y * height) for x, y in zip(numbers, numbers, strict=True)]


class Picture(NamedTuple):
    """A picture of a sample, and what is drawn on it.

    Args:
        image: The picture.
        marks: What is drawn.
        seen: The same as the model sees it, if anything is drawn and it is another picture then.
    """

    image: PIL.Image.Image
    marks: list[Mark]
    seen: "Picture | None" = None


def pictures(conversation: Conversation, renderer: Renderer) -> list[Picture]:
    """The pictures of a conversation that `renderer` has rendered, with all that lies in them."""
    found: list[PIL.Image.Image] = []
    opened: list[PIL.Image.Image] = []
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Image):
                found.append(load_image(part, conversation.source, "image"))
                opened.append(renderer.open_picture(part, conversation.source, "image"))
    written = renderer.boxes.write(renderer.turns(conversation), opened, conversation.source)
    marks: list[list[Mark]] = [[] for _ in found]
    seen: list[list[Mark]] = [[] for _ in found]
    codec = renderer.boxes.codec
    items = zip(written.items, written.answers, strict=True)
    for number, (item, answer) in enumerate(items, 1):
        image = item.image or 0
        is_answer = answer is not None
        words = _in_words(in_pixels(item, written.views))
        marks[image].append(_mark(number, item, item.numbers, is_answer, words))
        text = codec.write([item], written.views).text
        numbers = _as_written(codec, item, written.views[image])
        seen[image].append(_mark(number, item, numbers, is_answer, text))
    shown = [Picture(image, of_picture) for image, of_picture in zip(found, marks, strict=True)]
    for place, view in enumerate(written.views):
        if marks[place] and view != View(view.size, view.size):
            as_seen = Picture(_seen(found[place], view), seen[place])
            shown[place] = shown[place]._replace(seen=as_seen)
    return shown


def _mark(number: int, item: Located, numbers: tuple[float, ...], is_answer: bool, words: str) -> Mark:
    return Mark(number, type(item).__name__.lower(), numbers, item.label or "", is_answer, words)


def _as_written(codec: BoxCodec, item: Located, view: View) -> tuple[float, ...]:
    """The numbers of an item as they are read from what is written, in fractions of what is seen."""
    text = codec.write([replace(item, image=0)], [view]).text
    found = codec.read(text, [view]).items
    return view.to_seen(found[0].numbers if found else item.numbers)


def _in_words(pixels: tuple[float, ...]) -> str:
    """Numbers of pixels, rounded.

    >>> _in_words((160.0, 240.25, 640.0, 480.0))
    '160, 240.25, 640, 480'
    """
    return ", ".join(f"{value:g}" for value in pixels)


def _seen(image: PIL.Image.Image, view: View) -> PIL.Image.Image:
    """A picture as a model sees it: cut or padded, and resized."""
    x1, y1, x2, y2 = view.crop
    width, height = image.size
    edges = (round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height))
    extent = PIL.Image.new("RGB", (max(edges[2] - edges[0], 1), max(edges[3] - edges[1], 1)), _BESIDE)
    extent.paste(image, (-edges[0], -edges[1]))
    return extent.resize(view.seen)
