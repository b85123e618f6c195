"""A sample as one picture: what lies in it, what was asked, what is right, and what was answered."""

import textwrap

import PIL.Image
from PIL import ImageDraw, ImageFont

from lightning_vlm.callbacks.prediction_table.history import Answer
from lightning_vlm.callbacks.prediction_table.marks import Mark
from lightning_vlm.callbacks.prediction_table.samples import Row

WIDTH = 360
"""Of the picture, in pixels."""
LINES = 4
"""The most lines of a text."""
RIGHT = (31, 170, 80)
FOUND = (230, 20, 190)
ASKED = (255, 255, 255)
_INK = {"prompt": (30, 30, 30), "right": (60, 110, 75), "answer": (30, 30, 30), "scores": (110, 110, 110)}
_FONT = 13


def draw(row: Row, answer: Answer) -> PIL.Image.Image:
    """One sample with its answer, `WIDTH` pixels wide."""
    shown = [drawn_into(picture, row, answer, at) for at, picture in enumerate(row.pictures) if picture]
    scores = ", ".join(f"{name} {value:.3g}" for name, value in answer.scores.items())
    texts = {
        "prompt": answer.prompt,
        "right": f"right: {'unknown' if answer.target is None else answer.target}",
        "answer": f"answer: {answer.text or '(empty)'}",
        "scores": "; ".join(filter(None, [scores, *answer.faults])),
    }
    lines = [(line, _INK[name]) for name, text in texts.items() for line in _lines(text)]
    high = sum(picture.height + 4 for picture in shown)
    font = ImageFont.load_default(_FONT)
    sheet = PIL.Image.new("RGB", (WIDTH, high + 8 + len(lines) * (_FONT + 4)), "white")
    top = 0
    for picture in shown:
        sheet.paste(picture, (0, top))
        top += picture.height + 4
    pen = ImageDraw.Draw(sheet)
    for line, ink in lines:
        pen.text((6, top), line, fill=ink, font=font)
        top += _FONT + 4
    return sheet


def _lines(text: str) -> list[str]:
    wrapped = textwrap.wrap(text, 52)
    return [*wrapped[:LINES], "…"] if len(wrapped) > LINES else wrapped


def drawn_into(picture: PIL.Image.Image, row: Row, answer: Answer, number: int) -> PIL.Image.Image:
    """A picture of a sample with all that lies in it, `WIDTH` pixels wide."""
    size = (WIDTH, max(1, round(picture.height * WIDTH / picture.width)))
    small = picture.width < WIDTH / 2
    way = PIL.Image.Resampling.NEAREST if small else PIL.Image.Resampling.BICUBIC
    sheet = picture.resize(size, way)
    pen = ImageDraw.Draw(sheet)
    for marks, colour in ((row.asked, ASKED), (row.right, RIGHT), (answer.found, FOUND)):
        for mark in marks:
            if mark.picture == number:
                _draw_mark(pen, mark, colour, size)
    return sheet


def _draw_mark(
    pen: ImageDraw.ImageDraw, mark: Mark, colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """On a dark line, so that it is seen on any picture."""
    corners = mark.in_pixels(*size)
    if mark.kind == "point":
        ((x, y),) = corners
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), outline=(0, 0, 0), width=4)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), outline=colour, width=2)
    else:
        pen.line([*corners, corners[0]], fill=(0, 0, 0), width=4)
        pen.line([*corners, corners[0]], fill=colour, width=2)
    if mark.label:
        x, y = corners[0]
        font = ImageFont.load_default(11)
        pen.text((x + 3, y + 2), mark.label, fill=colour, stroke_width=2, stroke_fill=(0, 0, 0), font=font)
