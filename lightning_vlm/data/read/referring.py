"""Rows of a picture and boxes: of an expression, as RefCOCO has it, or of all objects in the picture."""

from collections.abc import Callable
from typing import Any

from lightning_vlm.data.read.fields import json_list, number_of, text_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.turns import Turn

EXPRESSIONS = ("sentences", "sentence", "sent", "expression", "referring_expression", "phrase", "expressions")
"""Keys that hold what a box is called."""
QUESTION = "Where is {expression}?"
"""What is asked."""
ALL = "Find all objects in the picture."
"""What is asked of rows with `objects`."""
_LABELS = ("category", "categories", "label", "labels", "name", "names", "class")
_FIRST = "of several '{}' the first is asked for"
_FORMAT = "data.box_format: pixels xywh (with width and height, as RefCOCO), pixels xyxy, fractions xyxy, ..."


def referring(key: str) -> Callable[[dict[str, Any], Location], list[Turn]]:
    """What reads the turns of a row whose expression is under this key."""
    return lambda row, at: _turns(row, key, at)


def _turns(row: dict[str, Any], key: str, at: Location) -> list[Turn]:
    """The question for an expression and the answer, which is its box, or several, or nothing.

    Args:
        row: The row.
        key: The key of the expression.
        at: Where the row stands.

    Raises:
        DataError: The user didn't say in which unit and order the numbers of boxes are.
    """
    expression = _expression(row[key], at / key)
    at_box = at / "bbox"
    value = json_list(row["bbox"])
    if not isinstance(value, list):
        raise at_box.wrong(value, "a list of four numbers")
    several = value if value and all(isinstance(item, list) for item in value) else [value] * bool(value)
    parts = [_part(item, expression, at_box) for item in several]
    question = QUESTION.format(expression=expression)
    return [Turn("user", question, at / key), Turn("assistant", parts or [{"type": "nothing"}], at_box)]


def detection(row: dict[str, Any], at: Location) -> list[Turn]:
    """The question for all `objects` of a picture, and the answer: their boxes in order, or nothing.

    `objects` has a list `bbox` and a list `category` of names, or is a list of objects with these keys.

    Raises:
        DataError: They aren't that, or the user didn't say in which unit and order the numbers are.
    """
    at = at / "objects"
    value = row["objects"]
    value = json_list(value) if isinstance(value, str) else value
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) and "bbox" in item for item in items):
        raise at.wrong(value, "lists 'bbox' and 'category', as data sets of detection on the hub have them")
    parts: list[dict[str, Any]] = []
    for item in items:
        name = next((name for name in _LABELS if name in item), None)
        boxes, labels = item["bbox"], item.get(name)
        if isinstance(value, list):
            boxes, labels = [boxes], [labels]
        if not isinstance(boxes, list) or (
            name and (not isinstance(labels, list) or len(labels) != len(boxes))
        ):
            raise at.wrong(item, f"as many items of '{name}' as of 'bbox'")
        for place, box in enumerate(boxes):
            label = labels[place] if name else None
            if label is not None and not isinstance(label, str):
                raise (at / str(name) / place).wrong(label, "the name of a category, as a text")
            parts.append(_part(box, label, at / "bbox" / place))
    return [Turn("user", ALL, at), Turn("assistant", parts or [{"type": "nothing"}], at / "bbox")]


def _expression(value: Any, at: Location) -> str:
    value = json_list(value)
    if isinstance(value, list):
        if not value:
            raise at.wrong(value, "at least one expression")
        if len(value) > 1:
            at.note(_FIRST.format(at.key))
        value, at = value[0], at / 0
    if isinstance(value, dict):
        name = next((name for name in ("sent", "raw", "sentence", "text") if name in value), None)
        if name is None:
            raise at.wrong(value, "a text, or an object with 'sent'")
        value, at = value[name], at / name
    text = text_of(value, at).strip().rstrip(".?")
    if not text:
        raise at.wrong(value, "an expression")
    return text


def _part(value: Any, label: str | None, at: Location) -> dict[str, Any]:
    format = at.reading.box_format
    at.reading.notes.box_format_is_used = True
    if format is None or format.is_words or format.order is None:
        raise at.error(f"{value}, whose unit and order nothing says"[:120], _FORMAT)
    if not isinstance(value, list) or len(value) != 4:
        raise at.wrong(value, "four numbers")
    numbers = [number_of(number, at / index) for index, number in enumerate(value)]
    box = {"type": "box", "box": list(format.numbers(numbers)), "pixels": format.pixels}
    return box if label is None else box | {"label": label}
