"""The boxes of an answer: in words, and drawn into the pictures."""

from collections.abc import Sequence
from pathlib import Path

import PIL.Image
from PIL import ImageDraw, ImageFont

from lightning_vlm.data.boxes.pixels import in_pixels
from lightning_vlm.data.parts import Located
from lightning_vlm.metrics.prediction import Prediction

_COLOUR = (230, 20, 190)


def lines_of(prediction: Prediction | None) -> list[str]:
    """What lies where in the pictures, a line each, in pixels of the pictures as they came."""
    if prediction is None or prediction.found is None:
        return []
    several = len(prediction.views) > 1
    lines = []
    for item in prediction.found.items:
        if not _has_picture(item, prediction):
            continue
        numbers = ", ".join(f"{value:g}" for value in in_pixels(item, prediction.views))
        where = f" in picture {(item.image or 0) + 1}" if several else ""
        label = f"  {item.label}" if item.label else ""
        lines.append(f"{type(item).__name__.lower()} {numbers}{where}{label}")
    return [*lines, *(f"not read: {fault}" for fault in prediction.found.faults)]


def drawn(prediction: Prediction, pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image | None]:
    """The pictures with what lies in them; None for one in which nothing does.

    Args:
        prediction: The answer.
        pictures: Of its conversation, upright, as they came.
    """
    sheets: list[PIL.Image.Image | None] = [None] * len(pictures)
    for item in prediction.found.items if prediction.found else ():
        number = item.image or 0
        if not _has_picture(item, prediction) or number >= len(pictures):
            continue
        sheet = sheets[number]
        if sheet is None:
            sheet = sheets[number] = pictures[number].copy()
        _draw(sheet, item, in_pixels(item, prediction.views))
    return sheets


def save(prediction: Prediction, pictures: Sequence[PIL.Image.Image], file: Path) -> list[Path]:
    """Write the pictures in which something lies.

    Args:
        prediction: The answer.
        pictures: As of `drawn`.
        file: Of the first; of others their number stands behind its name.

    Returns:
        The files; none where the answer has no boxes.
    """
    files: list[Path] = []
    for number, sheet in enumerate(drawn(prediction, pictures), 1):
        if sheet is not None:
            target = file if not files else file.with_name(f"{file.stem}-{number}{file.suffix}")
            sheet.save(target)
            files.append(target)
    return files


def _has_picture(item: Located, prediction: Prediction) -> bool:
    return 0 <= (item.image or 0) < len(prediction.views)


def _draw(sheet: PIL.Image.Image, item: Located, numbers: Sequence[float]) -> None:
    """On a dark line, so that it is seen on any picture."""
    pen = ImageDraw.Draw(sheet)
    thin = max(1, min(sheet.size) // 200)
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    if len(corners) == 1:
        ((x, y),) = corners
        around = 4 * thin
        for wide, colour in ((3 * thin, (0, 0, 0)), (thin, _COLOUR)):
            pen.ellipse((x - around, y - around, x + around, y + around), outline=colour, width=wide)
    else:
        if len(corners) == 2:
            (x1, y1), (x2, y2) = corners
            corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        for wide, colour in ((3 * thin, (0, 0, 0)), (thin, _COLOUR)):
            pen.line([*corners, corners[0]], fill=colour, width=wide)
    if item.label:
        x, y = corners[0]
        font = ImageFont.load_default(max(11, min(sheet.size) // 30))
        pen.text((x + 3, y + 2), item.label, fill=_COLOUR, stroke_width=2, stroke_fill=(0, 0, 0), font=font)
