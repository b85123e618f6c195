"""What a key takes, in words a person would use instead of Python's types."""

import collections.abc
import inspect
import pathlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from lightning_vlm.config.class_names import class_types, members, such_as

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "keys with values",
    list: "a list",
    type(None): "null",
    timedelta: "a duration such as {hours: 1}",
    Any: "any value",
    object: "any value",
}


def describe(hint: Any) -> str:
    """What a type takes, in words.

    >>> describe(int | None)
    'a whole number or null'
    >>> describe(dict[str, float] | Literal["uncertainty"])
    "'uncertainty' or names with a number each"
    """
    chosen = [f"'{choice}'" for choice in choices(hint)]
    words = [word for member in members(hint) if (word := _word(member))]
    lists = [word for word in words if word.startswith("a list, each item ")]
    for word in lists:
        item = word.removeprefix("a list, each item ")
        if item in words:
            words = [f"{item} (or a list of those)" if one == item else one for one in words if one != word]
    found = list(dict.fromkeys([*chosen, *words]))
    if "null" in found:
        found.remove("null")
        found.append("null")
    return " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def choices(hint: Any) -> list[str]:
    """The words that a type takes, each once: of its `Literal`s and enums."""
    return list(dict.fromkeys(_choices(hint)))


def _choices(hint: Any) -> Iterator[str]:
    for member in members(hint):
        if get_origin(member) is Literal:
            yield from (str(choice) for choice in get_args(member))
        elif inspect.isclass(member) and issubclass(member, Enum):
            yield from member.__members__


def _word(member: Any) -> str:
    if member in _WORDS:
        return _WORDS[member]
    origin, arguments = get_origin(member), get_args(member)
    if origin is Literal:
        return ""
    if origin in (list, set, collections.abc.Sequence, collections.abc.Iterable):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if origin is tuple:
        return f"a list of {len(arguments)}"
    if origin in (dict, collections.abc.Mapping):
        return f"names with {describe(arguments[1])} each" if len(arguments) == 2 else "keys with values"
    kinds = class_types(member)
    if kinds:
        return " or ".join(map(_class_words, kinds))
    if origin is collections.abc.Callable or member is collections.abc.Callable:
        return "the path of a function, such as package.function"
    if inspect.isclass(member) and issubclass(member, Enum):
        return ""
    if inspect.isclass(member) and (issubclass(member, pathlib.PurePath) or "Path" in member.__name__):
        return "a path"
    return "a value of another kind"


def _class_words(kind: type) -> str:
    if is_dataclass(kind):
        return f"some of the keys {', '.join(field.name for field in fields(kind))}"
    return f"a class with class_path and init_args{such_as([kind], 2)}"
