"""Checks of single values of a row, so that all errors use the same words."""

import functools
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from lightning_vlm.data.conversation import Role
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.words import printable, quote
from lightning_vlm.nearest import did_you_mean, shorten

_LONGEST_KEY = 40
"""Longer keys are no misspelt ones, and looking for slips in them takes time by their length squared."""


def check_keys(
    value: Any, at: Location, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    """Check that a value is an object with these keys and no others.

    >>> from pathlib import Path
    >>> from lightning_vlm.data.read.reading import Reading
    >>> at = Location("pets.jsonl:1", Reading(Path("."), print), "messages[0]")
    >>> check_keys({"rôle": "user"}, at, required=["role", "content"])
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:1: messages[0].rôle: found an unknown key;
    expected only 'role', 'content'; did you mean 'role'?
    """
    known = [*required, *optional]
    if not isinstance(value, dict):
        raise at.wrong(value, f"an object with the keys {quote(known)}")
    for name in value:
        if name not in known:
            name_at = at / printable(name)
            hint = did_you_mean(name, known, quoted=True)
            raise name_at.error("an unknown key", f"only {quote(known)}{hint}")
    for name in required:
        if name not in value:
            raise at.wrong(value, f"the key '{name}' too")
    return value


def check_spelling(name: str, known: Collection[str], present: Collection[str], at: Location) -> None:
    """Raise if an unknown key is a misspelt known one: ignoring it would lose what it was meant to say.

    Only typing errors count: two letters swapped, one missing or one too many. `height` is not `weight`.

    Args:
        name: The unknown key.
        known: The keys that have an effect here.
        present: The keys that the object has.
        at: Where the object stands.

    >>> from pathlib import Path
    >>> from lightning_vlm.data.read.reading import Reading
    >>> at = Location("pets.jsonl:1", Reading(Path("."), print))
    >>> check_spelling("wieght", ["messages", "weight"], ["messages", "wieght"], at)
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:1: wieght: found an unknown key; expected a known one;
    did you mean 'weight'?
    """
    meant = _typing_error_of(name, frozenset(known))
    if meant and meant not in present:
        raise (at / name).error("an unknown key", f"a known one; did you mean '{meant}'?")


@functools.lru_cache(maxsize=4096)
def _typing_error_of(name: str, known: frozenset[str]) -> str | None:
    """The known word that a name differs from by one typing error. A plural is no error."""
    if not 4 <= len(name) <= _LONGEST_KEY or not name.isprintable():
        return None
    slips = _with_two_letters_swapped(name) | _with_a_letter_less(name)
    for word in sorted(known):
        is_plural = word + "s" == name or name + "s" == word
        if len(word) < 5 or is_plural:
            continue
        if word in slips or name in _with_a_letter_less(word):
            return word
    return None


def _with_two_letters_swapped(name: str) -> set[str]:
    slips = set()
    for at in range(len(name) - 1):
        swapped = name[at + 1] + name[at]
        slips.add(name[:at] + swapped + name[at + 2 :])
    return slips


def _with_a_letter_less(name: str) -> set[str]:
    slips = set()
    for at in range(len(name)):
        slips.add(name[:at] + name[at + 1 :])
    return slips


def part_type(part: Any, known: Collection[str], at: Location) -> str:
    """The `type` of a part, one of those known."""
    if not isinstance(part, dict) or "type" not in part:
        raise at.wrong(part, "an object with the key 'type'")
    written = part["type"]
    if isinstance(written, str) and written in known:
        return written
    hint = did_you_mean(str(written), known, quoted=True)
    if written == "image_url":
        hint = "; a file in OpenAI's format is read by OpenAIMessages"
    raise (at / "type").wrong(written, f"one of {quote(known)}{hint}")


def role_of(value: Any, roles: Mapping[str, Role], at: Location) -> Role:
    """Our word for a role."""
    if not isinstance(value, str) or value not in roles:
        hint = did_you_mean(str(value), roles, quoted=True)
        raise at.wrong(value, f"one of {quote(roles)}{hint}")
    return roles[value]


def turns_of(value: Any, at: Location) -> list[Any]:
    """A list of turns, which aren't checked yet."""
    if not isinstance(value, list):
        raise at.wrong(value, "a list of turns")
    return value


def text_of(value: Any, at: Location) -> str:
    """A text that a tokenizer can take: JSON can spell half a surrogate pair, UTF-8 can't."""
    if not isinstance(value, str):
        raise at.wrong(value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        found = f"half a surrogate pair in {shorten(value)}"
        raise at.error(found, "text that UTF-8 can write") from None
    return value


def number_of(value: Any, at: Location) -> float:
    """A number; infinite ones too, for `Conversation` to refuse."""
    if not _is_int_or_float(value):
        raise at.wrong(value, "a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return _is_int_or_float(value) and abs(value) < math.inf


def _is_int_or_float(value: Any) -> bool:
    """Whether a value is a number in JSON. `true` and `false` aren't, although Python counts them as such."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def task_and_weight(row: dict[str, Any], at: Location) -> tuple[str, float]:
    """The task and the weight of a row, which are the same in every format."""
    task_at = at / "task"
    task = text_of(row.get("task", "default"), task_at)
    if not task:
        raise task_at.error("an empty text", "the name of a task")
    weight = number_of(row.get("weight", 1.0), at / "weight")
    return task, weight


def json_list(value: Any) -> Any:
    """The list that a table holds as a text in JSON, or as an object of lists; any other value as it is.

    >>> json_list('["a.png"]'), json_list("[sic]")
    (['a.png'], '[sic]')
    >>> json_list({"from": ["human", "gpt"], "value": ["What?", "A cat."]})
    [{'from': 'human', 'value': 'What?'}, {'from': 'gpt', 'value': 'A cat.'}]
    """
    if isinstance(value, dict):
        return _rows_of_columns(value)
    if not isinstance(value, str):
        return value
    may_be_list = value.startswith("[") and value.rstrip().endswith("]")
    if not may_be_list:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _rows_of_columns(value: dict[str, Any]) -> Any:
    """An object of lists of one length as a list of objects; any other object as it is."""
    names = list(value)
    columns = list(value.values())
    if not all(isinstance(column, list) for column in columns):
        return value
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        return value
    rows = zip(*columns, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """The object without its nulls, with which tables fill absent keys."""
    if None not in value.values():
        return value
    return {name: item for name, item in value.items() if item is not None}
