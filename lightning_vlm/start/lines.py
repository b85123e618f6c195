"""Lines of YAML with the reason of each beside it."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

WIDTH = 110
"""Lines are no longer, unless a path is."""
_COLUMN = 44
"""Reasons stand in one column behind lines of up to so many characters."""
_GAP = 2


class Line(NamedTuple):
    """A line of YAML, and why it says that."""

    text: str
    why: str = ""


def aligned(lines: Sequence[Line]) -> str:
    """Lines with their reasons in one column, or above a line that leaves no room for that."""
    indent = "  " if len(lines) > 1 else ""
    written = [indent + line.text for line in lines]
    short = [
        len(text) for text, line in zip(written, lines, strict=True) if line.why and len(text) <= _COLUMN
    ]
    column = max(short, default=0) + _GAP
    result = ""
    for text, line in zip(written, lines, strict=True):
        start = max(column, len(text) + _GAP)
        if not line.why:
            result += f"{text}\n"
        elif start + 2 + len(line.why) <= WIDTH:
            result += f"{text:<{start}}# {line.why}\n"
        else:
            inner = " " * (len(text) - len(text.lstrip()))
            for part in textwrap.wrap(line.why, WIDTH - len(inner) - 2):
                result += f"{inner}# {part}\n"
            result += f"{text}\n"
    return result


def scalar(value: Any) -> str:
    """A value as YAML has it on one line.

    >>> scalar("a.jsonl"), scalar("yes"), scalar("a: b")
    ('a.jsonl', "'yes'", "'a: b'")
    """
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).strip()
    return text.removesuffix("...").strip()


def flow(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """A mapping or a list as YAML has it on one line, in its order.

    >>> flow({"monitor": "val/loss", "patience": 3})
    '{monitor: val/loss, patience: 3}'
    """
    return yaml.safe_dump(
        value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False
    ).strip()


def number(value: float) -> str:
    """A small number as YAML reads it as one, which `2e-4` isn't.

    >>> number(2e-4), number(1e-5)
    ('2.0e-4', '1.0e-5')
    """
    mantissa, exponent = f"{value:.2e}".split("e")
    digits = mantissa.rstrip("0")
    return f"{digits}0e{int(exponent)}" if digits.endswith(".") else f"{digits}e{int(exponent)}"


def amount(gib: float) -> str:
    """An amount of memory.

    >>> amount(13.26), amount(0.02)
    ('13.3 GiB', '20 MiB')
    """
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{1024 * gib:,.0f} MiB"
