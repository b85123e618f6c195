"""How large the results of a chat template's operators, methods and filters get, before they are made."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST_BITS = 100_000
"""How many bits a whole number may have that an operator makes."""
_LONG_NUMBER = re.compile(r"\d{7,}")
"""A width in a format that would turn a few characters into millions."""
_MOST_DIGITS = 100
"""Longer numbers aren't read, as Python refuses the longest ones."""
_WIDTH_AS_VALUE = {"%": re.compile(r"\*"), "{": re.compile(r":[^{}:]*\{")}
"""Where a format takes a width from the values, for each of the signs that begin a place in a format."""
_SHALLOW = re.compile(
    "attr|batch|count|d|default|dictsort|first|groupby|items|last|length|list|map|max|min|reject|rejectattr|"
    "reverse|select|selectattr|slice|sort|sum|unique"
)
"""Filters that look at a list but do not write what is in it."""
_Text = str | bytes
_List = list | tuple


class TemplateLimit(Exception):  # noqa: N818
    """A template that takes too many steps or writes too much."""


def size_of(value: Any, most: int) -> int:
    """About how many characters a value has as text. Counting stops once there are more than `most`.

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
    if sign == "%" and isinstance(left, _Text):
        return _size_of_format(most, left, right, "%")
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if sign == "**":
            bits = left.bit_length() * right
        if bits > _MOST_BITS:
            raise TemplateLimit("it computes a number of more than 30,000 digits")
        return 0
    sides = (left, right)
    lengths = [len(side) for side in sides if isinstance(side, _Text | _List)]
    if sign == "+":
        return sum(lengths)
    times = [side for side in sides if isinstance(side, int)]
    if sign == "*" and lengths and times:
        return lengths[0] * max(times[0], 0)
    return 0


def size_of_call(most: int, function: Any, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """How large the result of a method of a text or number will be, at most; 0 of other functions."""
    name = getattr(function, "__name__", "")
    method = function
    if not hasattr(function, "__self__"):  # Jinja wraps the methods `format` and `format_map`
        method = getattr(function, "__wrapped__", None)
    owner = getattr(method, "__self__", None)
    arguments = [*args, *kwargs.values()]
    if isinstance(owner, int):  # to_bytes
        return sum(_numbers(arguments))
    if not isinstance(owner, _Text):
        return 0
    if name in ("format", "format_map"):
        return _size_of_format(most, owner, arguments, "{")
    if name == "join" and arguments:  # the method gets as its argument what the filter gets as its value
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
    """How large the result of a filter will be, or of the method of a text that does the same."""
    size = 0
    if isinstance(value, _List | dict) and _SHALLOW.fullmatch(name):
        size = len(value)
    elif isinstance(value, _Text | _List | dict):
        size = size_of(value, most)
    numbers = _numbers(arguments)
    largest = max(numbers, default=0)
    texts = [argument for argument in arguments if isinstance(argument, _Text)]
    match name:
        case "center" | "ljust" | "rjust" | "zfill" | "batch" | "slice":
            return size + largest
        case "expandtabs":
            return size * max([8, *numbers])
        case "translate":
            return size * size_of(arguments, most)
        case "indent" if size:
            lines = str(value).count("\n") + 1
            return size + lines * max([4, *numbers, *map(len, texts)])
        case "tojson":
            return size * (1 + largest)
        case "round" if largest > 1000:
            # Rounding multiplies by a power of ten.
            raise TemplateLimit("it rounds to more than 1,000 digits")
        case "replace" if isinstance(value, _Text) and len(texts) >= 2:
            old, new = texts[:2]
            return size + value.count(old) * len(new)  # type: ignore[arg-type]
        case "join" if texts and hasattr(value, "__len__"):
            return size + len(value) * len(texts[0])
        case "sum" if isinstance(value, _List):
            starts = [argument for argument in arguments if isinstance(argument, _List)]
            if starts:  # every sum on the way is a list of its own
                return len(value) * size_of(value, most)
    return size


def _size_of_format(most: int, form: Any, values: Any, sign: str) -> int:
    """How large a text gets when values are put into it, at most."""
    text = str(form)
    places = text.count(sign) + 1
    size = len(text) + places * size_of(values, most)
    long_numbers = _LONG_NUMBER.findall(text)
    widths = [int(number) if len(number) < _MOST_DIGITS else most + 1 for number in long_numbers]
    if _WIDTH_AS_VALUE[sign].search(text):
        if not isinstance(values, Sequence):
            values = [values]
        widths += map(abs, _numbers(values))
    return size + sum(widths)


def _numbers(values: Iterable[Any]) -> list[int]:
    return [value for value in values if isinstance(value, int)]
