"""How large the results of a chat template's operators, methods and filters get, before they are made."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_BITS = 100_000
"""Of a whole number that an operator makes."""
_LONG_NUMBER = re.compile(r"\d{7,}")
"""A width in a format, with which a few characters would become millions."""
_SHALLOW = re.compile(
    "attr|batch|count|d|default|dictsort|first|groupby|items|last|length|list|map|max|min|reject|rejectattr|"
    "reverse|select|selectattr|slice|sort|sum|unique"
)
"""Filters that look at a list but do not write what is in it."""


class TemplateLimit(Exception):  # noqa: N818
    """A template that takes too many steps or writes too much."""


def size_of(value: Any, most: int) -> int:
    """The characters of a value written as text, about; no longer counted once there are more than `most`.

    >>> size_of(["ab", {"c": 1}], 100)
    16
    """
    total = 0
    waiting = [value]
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
        if bits > _MOST_BITS:
            raise TemplateLimit("it computes a number of more than 30,000 digits")
        return 0
    sequences = [side for side in (left, right) if isinstance(side, str | bytes | list | tuple)]
    times = [side for side in (left, right) if isinstance(side, int)]
    if sign == "*" and sequences and times:
        return len(sequences[0]) * max(times[0], 0)
    return sum(map(len, sequences)) if sign == "+" else 0


def size_of_call(most: int, function: Any, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """How large the result of a method of a text or number will be, at most; 0 of other functions."""
    name = getattr(function, "__name__", "")
    # Jinja wraps the methods `format` and `format_map`.
    method = function if hasattr(function, "__self__") else getattr(function, "__wrapped__", None)
    owner = getattr(method, "__self__", None)
    arguments = [*args, *kwargs.values()]
    if isinstance(owner, int):  # to_bytes
        return sum(argument for argument in arguments if isinstance(argument, int))
    if not isinstance(owner, str | bytes):
        return 0
    if name in ("format", "format_map"):
        return _size_of_format(most, owner, arguments, "{")
    if name == "join" and arguments:  # the filter's value is what the method gets
        return _size_of_result(most, name, arguments[0], [owner])
    return _size_of_result(most, name, owner, arguments)


def size_of_filter(most: int, name: str, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """How large the result of a filter will be, at most; the size of its value where it adds little."""
    if not args:
        return 0
    value, *rest = args
    arguments = [*rest, *kwargs.values()]
    if name == "format":
        return _size_of_format(most, value, arguments, "%")
    return _size_of_result(most, name, value, arguments)


def _size_of_result(most: int, name: str, value: Any, arguments: Sequence[Any]) -> int:
    """Of a filter, or of the method of a text that does the same."""
    size = 0
    if isinstance(value, list | tuple | dict) and _SHALLOW.fullmatch(name):
        size = len(value)
    elif isinstance(value, str | bytes | list | tuple | dict):
        size = size_of(value, most)
    numbers = [argument for argument in arguments if isinstance(argument, int)]
    texts = [argument for argument in arguments if isinstance(argument, str | bytes)]
    match name:
        case "center" | "ljust" | "rjust" | "zfill" | "batch" | "slice":
            return size + max(numbers, default=0)
        case "expandtabs":
            return size * max([8, *numbers])
        case "translate":
            return size * size_of(arguments, most)
        case "indent":
            width = max([4, *numbers, *map(len, texts)])
            return size + (str(value).count("\n") + 1) * width if size else 0
        case "tojson":
            return size * (1 + max(numbers, default=0))
        case "round" if max(numbers, default=0) > 1000:
            raise TemplateLimit("it rounds to more than 1,000 digits")  # by a power of ten
        case "replace" if isinstance(value, str | bytes) and len(texts) >= 2:
            return size + value.count(texts[0]) * len(texts[1])  # type: ignore[arg-type]
        case "join" if texts and hasattr(value, "__len__"):
            return size + len(value) * len(texts[0])
        case "sum" if isinstance(value, list | tuple) and any(
            isinstance(start, list | tuple) for start in arguments
        ):
            return len(value) * size_of(value, most)  # each sum is a list of its own
    return size


def _size_of_format(most: int, form: Any, values: Any, sign: str) -> int:
    """How large a text gets when values are put into it, at most."""
    text = str(form)
    size = len(text) + (text.count(sign) + 1) * size_of(values, most)
    widths = [int(number) for number in _LONG_NUMBER.findall(text)[:100]]
    has_widths_as_values = "*" in text if sign == "%" else re.search(r":[^{}]*\{", text)
    if has_widths_as_values:
        numbers = values.values() if isinstance(values, Mapping) else values
        numbers = numbers if isinstance(numbers, Sequence) else [numbers]
        widths += [abs(number) for number in numbers if isinstance(number, int)]
    return size + sum(widths)
