"""Docstrings as mkdocstrings reads them: examples stand below the text, without a heading."""

import re
from textwrap import indent
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
_RETURNS = re.compile(r"^(Returns|Yields): (\S.*(?:\n(?!\s*$).*)*)", re.MULTILINE)


class Doctests(griffe.Extension):
    """Put each example into a block of code, and what is returned below its heading."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change a docstring once it is read."""
        if obj.docstring is not None:
            obj.docstring.value = with_fences(with_sections(obj.docstring.value))


def with_sections(text: str) -> str:
    """A docstring with what it returns in lines below `Returns:`, as the reader of docstrings expects it.

    >>> print(with_sections("Adds.\\n\\nReturns: The sum\\nof both."))
    Adds.
    <BLANKLINE>
    Returns:
        The sum
        of both.
    """
    return _RETURNS.sub(lambda match: f"{match[1]}:\n{indent(match[2], ' ' * 4)}", text)


def with_fences(text: str) -> str:
    """A docstring with its examples in blocks of code.

    >>> with_fences("Adds.\\n\\n>>> 1 + 1\\n2").splitlines()
    ['Adds.', '', '```pycon', '>>> 1 + 1', '2', '```']
    """
    return _EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", text)
