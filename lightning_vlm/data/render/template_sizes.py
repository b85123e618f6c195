"""How large the results of a chat template's operators, methods and filters get, before they are made."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_BITS = 100_000
"""The largest whole number that operators may make."""
_LONG_NUMBER = re.compile(r"\d{7,}")
"""A width in a format, with which a few characters would become millions."""
_CONTAINERS = list | tuple | dict
_SHALLOW = {
    *("attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length"),
    *(
        "list",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "slice",
        "sort",
    ),
    *("sum", "unique"),
}
"""Filters that look at a list but do not write what is in it."""


class TemplateLimit(Exception):  # noqa: N818
    """A template that takes too many steps or writes too much."""


def size_of(value: Any, most: int) -> int:
    """The characters of a value written as text, about; no longer counted once there are more than `most`.

    >>> size_of(["ab", {"c": 1}], 100)
    16
    """
    if isinstance(value, str | bytes):
        return len(value)
    total, waiting = 0, [value]
    while waiting and total <= most:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Mapping):
            total += len(item)
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            total += len(item)
            waiting += item
        else:
            total += 10
    return total


def size_of_operation(most: int, sign: str, left: Any, right: Any) -> int:
    """How large the result of an operator will be, at most."""
    if sign == "%" and isinstance(left, str | bytes):
        return _size_of_format(most, left, right, "%")
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if sign == "**" else left.bit_length() + right.bit_length()
        if bits > _BITS:
            raise TemplateLimit("it computes a number of more than 30,000 digits")
        return 0
    long = str | bytes | list | tuple
    if sign == "*" and (isinstance(left, long) or isinstance(right, long)):
        one, times = (left, right) if isinstance(left, long) else (right, left)
        return len(one) * max(times, 0) if isinstance(times, int) else 0
    if sign == "+" and isinstance(left, long) and isinstance(right, long):
        return len(left) + len(right)
    return 0


def _size_of_format(most: int, form: Any, values: Any, sign: str) -> int:
    """How large a text gets when values are put into it, at most."""
    text = form if isinstance(form, str) else str(form)
    size = len(text) + (text.count(sign) + 1) * size_of(values, most)
    widths = [int(number) for number in _LONG_NUMBER.findall(text)[:100]]
    nested = "*" in text if sign == "%" else re.search(r":[^{}]*\{", text)
    if nested:  # a width that is one of the values
        numbers = values.values() if isinstance(values, Mapping) else values
        numbers = numbers if isinstance(numbers, Sequence) else [numbers]
        widths += [abs(number) for number in numbers if isinstance(number, int)]
    return size + sum(widths)


def size_of_call(most: int, function: Any, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """The largest size that a method's result can have; 0 if it can't be larger than its inputs."""
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", getattr(getattr(function, "__wrapped__", None), "__self__", None))
    if isinstance(owner, int):  # to_bytes
        return sum(value for value in (*args, *kwargs.values()) if isinstance(value, int))
    if not isinstance(owner, str | bytes):
        return 0
    values = (owner, *args, *kwargs.values())
    match name:
        case "center" | "ljust" | "rjust" | "zfill":
            return max((value for value in values if isinstance(value, int)), default=0)
        case "expandtabs":
            widths = [value for value in values if isinstance(value, int)]
            return len(owner) * max([8, *widths])
        case "translate":
            return len(owner) * size_of(args, most)
        case "format" | "format_map":
            return _size_of_format(most, owner, [*args, *kwargs.values()], "{")
        case "replace" | "join":
            return size_of_filter(most, name, (owner, *args) if name == "replace" else (*args, owner), {})
    return 0


def size_of_filter(most: int, name: str, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """How large the result of a filter will be, at most; the size of its value where it adds little."""
    if not args:
        return 0
    value = args[0]
    if isinstance(value, str | bytes) or (isinstance(value, _CONTAINERS) and name not in _SHALLOW):
        size = size_of(value, most)
    else:
        size = len(value) if isinstance(value, _CONTAINERS) else 0
    rest = [*args[1:], *kwargs.values()]
    numbers = [number for number in rest if isinstance(number, int)]
    match name:
        case "center" | "batch" | "slice":
            return size + max(numbers, default=0)
        case "indent":
            width = max([4, *numbers, *(len(text) for text in rest if isinstance(text, str))])
            return size + (str(value).count("\n") + 1) * width if size else 0
        case "tojson":
            return size * (1 + max(numbers, default=0))
        case "format":
            return _size_of_format(most, value, rest, "%")
        case "round" if max(numbers, default=0) > 1000:
            raise TemplateLimit("it rounds to more than 1,000 digits")  # by a power of ten
        case "replace" if len(rest) >= 2 and all(
            isinstance(text, str | bytes) for text in (value, *rest[:2])
        ):
            return size + value.count(rest[0]) * len(rest[1])
        case "sum" if any(isinstance(start, list | tuple) for start in rest) and isinstance(
            value, list | tuple
        ):
            return len(value) * size_of(value, most)  # each sum is a list of its own
        case "join" if rest and isinstance(rest[0], str | bytes) and hasattr(value, "__len__"):
            return size + len(value) * len(rest[0])
    return size
