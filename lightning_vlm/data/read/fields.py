"""Checks of single fields of a record, so that all errors use the same words."""

import functools
import json
import math
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

from lightning_vlm.data.conversation import Role
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import did_you_mean, shorten


def keys(
    value: Any, source: str, key: str, required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Check that it is an object with these keys and no others.

    >>> keys({"rôle": "user"}, "pets.jsonl:1", "messages[0]", required=["role", "content"])
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:1: messages[0].rôle: found an unknown key;
    expected only 'role', 'content'; did you mean 'role'?
    """
    known = [*required, *optional]
    if not isinstance(value, dict):
        raise DataError(source, key, show(value), f"an object with the keys {names(known)}")
    for name in value:
        if name not in known:
            shown = name if name.isprintable() and len(name) < 40 else shorten(name, 40)
            where = f"{key}.{shown}" if key else shown
            raise DataError(
                source,
                where,
                "an unknown key",
                f"only {names(known)}{did_you_mean(name, known, quoted=True)}",
            )
    for name in required:
        if name not in value:
            raise DataError(source, key, show(value), f"the key '{name}' too")


def check_known_key(
    name: str, known: Collection[str], present: Collection[str], source: str, key: str
) -> None:
    """Raise if an unknown key is a misspelt known one: ignoring it would lose what it was meant to say.

    Only slips of the hand count: two letters swapped, one missing or one too many. `height` is not `weight`.

    >>> check_known_key("wieght", ["messages", "weight"], ["messages", "wieght"], "pets.jsonl:1", "")
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:1: wieght: found an unknown key; expected a known one;
    did you mean 'weight'?
    """
    meant = _slip_of(name, frozenset(known))
    if meant and meant not in present:
        where = f"{key}.{name}" if key else name
        raise DataError(source, where, "an unknown key", f"a known one; did you mean '{meant}'?")


@functools.lru_cache(maxsize=4096)
def _slip_of(name: str, known: frozenset[str]) -> str | None:
    if len(name) < 4 or not name.isprintable():
        return None
    swapped = {name[:at] + name[at + 1] + name[at] + name[at + 2 :] for at in range(len(name) - 1)}
    shorter = {name[:at] + name[at + 1 :] for at in range(len(name))} - {name.removesuffix("s")}
    for word in sorted(known):
        if len(word) < 5 or word + "s" == name or name + "s" == word:
            continue
        if word in swapped or word in shorter:
            return word
        if any(word[:at] + word[at + 1 :] == name for at in range(len(word))):
            return word
    return None


def part_type(part: Any, known: Collection[str], source: str, key: str) -> str:
    """The `type` of a part, one of those known."""
    if not isinstance(part, dict) or "type" not in part:
        raise DataError(source, key, show(part), "an object with the key 'type'")
    kind = part["type"]
    if isinstance(kind, str) and kind in known:
        return kind
    hint = did_you_mean(str(kind), known, quoted=True)
    if kind == "image_url":
        hint = "; a file in OpenAI's format is read by OpenAIMessages"
    raise DataError(source, f"{key}.type", show(kind), f"one of {names(known)}{hint}")


def role_of(value: Any, roles: Mapping[str, Role], source: str, key: str) -> Role:
    """Our word for a role."""
    if not isinstance(value, str) or value not in roles:
        raise DataError(
            source, key, show(value), f"one of {names(roles)}{did_you_mean(str(value), roles, quoted=True)}"
        )
    return roles[value]


def turns(value: Any, source: str, key: str) -> list[Any]:
    """A list; what is in it is for others to check."""
    if not isinstance(value, list):
        raise DataError(source, key, show(value), "a list of turns")
    return value


def text_of(value: Any, source: str, key: str) -> str:
    """A text that a tokenizer can take: JSON can spell half a surrogate pair, UTF-8 can't."""
    if not isinstance(value, str):
        raise DataError(source, key, show(value), "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        found = f"half a surrogate pair in {shorten(value)}"
        raise DataError(source, key, found, "text that UTF-8 can write") from None
    return value


def number_of(value: Any, source: str, key: str) -> float:
    """A number; infinite ones too, for `Conversation` to refuse."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(source, key, show(value), "a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_number(value: Any) -> bool:
    """Whether it is a finite number; `true` and `false` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def json_list(value: Any) -> Any:
    """The list that a table holds as a text in JSON, or as an object of lists; any other value as it is.

    >>> json_list('["a.png"]'), json_list("[sic]")
    (['a.png'], '[sic]')
    >>> json_list({"from": ["human", "gpt"], "value": ["What?", "A cat."]})
    [{'from': 'human', 'value': 'What?'}, {'from': 'gpt', 'value': 'A cat.'}]
    """
    if isinstance(value, dict):
        columns = list(value.values())
        if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
        return value
    if not (isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def box_of(value: Any, source: str, key: str) -> tuple[float, float, float, float]:
    """Four numbers; `Conversation` checks that they are a box."""
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(source, key, show(value), "four numbers x1, y1, x2, y2 between 0 and 1")
    x1, y1, x2, y2 = (number_of(one, source, f"{key}[{index}]") for index, one in enumerate(value))
    return x1, y1, x2, y2


def show(value: Any) -> str:
    """What a value is, in a few words.

    >>> show({"role": "user"}), show([1, 2]), show(None), show("a cat")
    ("an object with the keys 'role'", 'a list of 2', 'null', "'a cat'")
    """
    match value:
        case dict():
            return f"an object with the keys {names(value)}" if value else "an object without keys"
        case list():
            return f"a list of {len(value)}"
        case str():
            return shorten(value)
        case bool() | None:
            return json.dumps(value)
        case _:
            text = str(value)
            return text if len(text) < 40 else shorten(text, 40)


def names(some: Collection[Any]) -> str:
    """The first eight of some names, in quotes."""
    shown = ", ".join(shorten(str(name), 40) for name in islice(some, 8))
    return f"{shown}, ..." if len(some) > 8 else shown
