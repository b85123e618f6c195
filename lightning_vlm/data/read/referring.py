"""Rows of a picture, an expression and the box that it means, as RefCOCO has them."""

from collections.abc import Callable
from typing import Any

from lightning_vlm.data.read.fields import json_list, number_of, text_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.turns import Turn

EXPRESSIONS = ("sentences", "sentence", "sent", "expression", "referring_expression", "phrase", "expressions")
"""Keys that hold what a box is called."""
QUESTION = "Where is {expression}?"
"""What is asked."""
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


def _part(value: list[Any], label: str, at: Location) -> dict[str, Any]:
    format = at.reading.box_format
    at.reading.notes.box_format_is_used = True
    if format is None or format.is_words or format.order is None:
        raise at.error(f"{value}, whose unit and order nothing says"[:120], _FORMAT)
    if len(value) != 4:
        raise at.wrong(value, "four numbers")
    numbers = [number_of(number, at / index) for index, number in enumerate(value)]
    return {"type": "box", "box": list(format.numbers(numbers)), "label": label, "pixels": format.pixels}
