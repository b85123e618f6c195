"""How errors and notes show values and names of the data."""

import json
from collections.abc import Collection
from itertools import islice
from typing import Any

from lightning_vlm.nearest import shorten


def describe(value: Any) -> str:
    """What a value is, in a few words.

    >>> describe({"role": "user"}), describe([1, 2]), describe(None), describe("a cat")
    ("an object with the keys 'role'", 'a list of 2', 'null', "'a cat'")
    """
    match value:
        case dict():
            return f"an object with the keys {quote(value)}" if value else "an object without keys"
        case list():
            return f"a list of {len(value)}"
        case str():
            return shorten(value)
        case bool() | None:
            return json.dumps(value)
        case _:
            text = str(value)
            return text if len(text) < 40 else shorten(text, 40)


def quote(names: Collection[Any]) -> str:
    """The first eight of some names, in quotes."""
    shown = ", ".join(shorten(str(name), 40) for name in islice(names, 8))
    return f"{shown}, ..." if len(names) > 8 else shown


def printable(name: str) -> str:
    """A key of the data, as an error may show it."""
    return name if name.isprintable() and len(name) < 40 else shorten(name, 40)
