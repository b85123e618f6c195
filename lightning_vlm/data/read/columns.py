"""`data.columns`: our names of keys, and the names that they have in the data."""

from collections.abc import Mapping
from typing import Any

from lightning_vlm.data.read.dialects import KNOWN
from lightning_vlm.data.read.identity import ID
from lightning_vlm.data.read.reading import Reading
from lightning_vlm.data.read.right_answers import KEYS
from lightning_vlm.data.read.words import quote
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean


def check_our_names(columns: Mapping[str, str]) -> None:
    """Raise unless each of our names has an effect in some dialect."""
    known = {*KNOWN, *KEYS, ID}
    for ours in columns:
        if ours not in known:
            expected = f"one of our names, {quote(sorted(known))}, each with the name that it has in the data"
            hint = did_you_mean(ours, known, quoted=True)
            raise UserError(f"data.columns: found {ours!r}; expected {expected}{hint}")


def with_our_names(row: Any, reading: Reading) -> Any:
    """A row with our names of its keys."""
    if not isinstance(row, dict):
        return row
    reading.notes.keys.update(row)
    if not reading.columns:
        return row
    renamed = {ours: row[theirs] for ours, theirs in reading.columns.items() if theirs in row}
    theirs = set(reading.columns.values())
    return {name: value for name, value in row.items() if name not in theirs} | renamed


def check_their_names(reading: Reading, name: str, has_faults: bool) -> None:
    """Raise if no row has one of the columns: it is a misspelt one, unless the file is of another format.

    Args:
        reading: How the rows were read, with every key that they have.
        name: What errors call the file.
        has_faults: Whether rows are bad, as they are if they miss the columns.
    """
    keys = reading.notes.keys
    missing = {ours: theirs for ours, theirs in reading.columns.items() if theirs not in keys}
    if not missing or not keys:
        return
    if len(missing) == len(reading.columns) and not has_faults:
        reading.notes.say("data.columns has no effect: its columns aren't there, and aren't needed")
        return
    ours, theirs = next(iter(missing.items()))
    expected = f"one of {quote(sorted(keys))}{did_you_mean(theirs, keys, quoted=True)}"
    raise UserError(f"data.columns.{ours}: found '{theirs}', which no row of {name} has; expected {expected}")
