"""What a key takes, in words a person would use instead of Python's types."""

import collections.abc
import inspect
import pathlib
from dataclasses import fields, is_dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from lightning_vlm.config.class_names import class_types, is_tensor, members, such_as

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
    >>> describe(int | list[int] | None)
    'a whole number (or a list of those) or null'
    >>> describe(bool | Literal["auto"])
    "'auto', true or false"
    """
    parts = [f"'{word}'" for word in words_of(hint)]
    for member in members(hint):
        if get_origin(member) is not Literal and not _is_enum(member) and not is_tensor(member):
            parts.append(_describe(member))
    parts = [part for part in dict.fromkeys(parts) if part != "null"]
    for part in list(parts):
        as_list = f"a list, each item {part}"
        if as_list in parts:
            parts.remove(as_list)
            parts[parts.index(part)] = f"{part} (or a list of those)"
    if type(None) in members(hint):
        parts.append("null")
    if _WORDS[bool] in parts:
        place = parts.index(_WORDS[bool])
        parts[place : place + 1] = ["true", "false"]
    *first, last = parts
    return f"{', '.join(first)} or {last}" if first else last


def words_of(hint: Any) -> list[str]:
    """The words that a type takes, each once: those of its `Literal`s and enums."""
    words: list[str] = []
    for member in members(hint):
        if get_origin(member) is Literal:
            words += map(str, get_args(member))
        elif _is_enum(member):
            words += member.__members__
    return list(dict.fromkeys(words))


def _is_enum(member: Any) -> bool:
    return inspect.isclass(member) and issubclass(member, Enum)


def _describe(member: Any) -> str:
    if member in _WORDS:
        return _WORDS[member]
    origin, arguments = get_origin(member), get_args(member)
    if origin in (list, set, collections.abc.Sequence, collections.abc.Iterable):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if origin is tuple:
        return f"a list of {len(arguments)}"
    if origin in (dict, collections.abc.Mapping):
        return f"names with {describe(arguments[1])} each" if len(arguments) == 2 else "keys with values"
    kinds = class_types(member)
    if kinds:
        return " or ".join(map(_describe_class, kinds))
    if origin is collections.abc.Callable or member is collections.abc.Callable:
        return "the path of a function, such as package.function"
    if inspect.isclass(member) and (issubclass(member, pathlib.PurePath) or "Path" in member.__name__):
        return "a path"
    return "a value of another kind"


def _describe_class(kind: type) -> str:
    if is_dataclass(kind):
        return f"some of the keys {', '.join(field.name for field in fields(kind))}"
    return f"a class with class_path and init_args{such_as([kind], 2)}"
