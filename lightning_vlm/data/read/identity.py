"""What a row calls itself, so that its answer can be joined with it again."""

from typing import Any

from lightning_vlm.data.read.fields import text_of
from lightning_vlm.data.read.reading import Location

ID = "id"
"""The key; `data.columns: {id: question_id}` names another."""


def own_id(row: dict[str, Any], at: Location) -> str | int | None:
    """`id` of our own format, strictly: a text or a whole number."""
    if ID not in row:
        return None
    found = row[ID]
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    if not isinstance(found, str):
        raise (at / ID).wrong(found, "a text or a whole number")
    return text_of(found, at / ID)


def any_id(row: dict[str, Any], at: Location) -> str | int | None:
    """`id` of any row, if it is a text or a whole number; None, and counted as ignored, if it isn't."""
    found = row.get(ID)
    if isinstance(found, str | int) and not isinstance(found, bool):
        return own_id(row, at)
    if ID in row:
        at.reading.notes.ignore(ID)
    return None
