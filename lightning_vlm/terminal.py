"""Output for a terminal: text without control characters, paths, answers."""

import os
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import get_console
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

LINES = 6
"""The most lines of a text that are shown; its file has all of them."""
LABEL = 12
"""The width of the names at the left."""


def visible(text: str) -> str:
    """A text whose control characters are spelled out, so that no model or data file commands a terminal.

    >>> visible("red\\x1b[2J\\r\\nblue\\u202e")
    'red⟨U+001B⟩[2J⟨U+000D⟩\\nblue⟨U+202E⟩'
    """
    return "".join(code_point(character) if _is_control(character) else character for character in text)


def code_point(character: str) -> str:
    """The code point of a character, to show in its place."""
    return f"⟨U+{ord(character):04X}⟩"


def _is_control(character: str) -> bool:
    if character in "\n\t\u200c\u200d":  # Without the joiners, emoji and some scripts would fall apart.
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def short_path(path: str | Path) -> str:
    """A path from the working directory if it lies below it, else the whole path."""
    try:
        absolute = os.path.abspath(path)
        below = os.path.relpath(absolute)
    except FileNotFoundError:  # the working directory has been deleted
        return str(path)
    return absolute if below.startswith("..") else below


def print_line(name: str, text: str) -> None:
    """Print a name and what belongs to it. Long paths stay in one piece, so that they can be copied."""
    print_text(f"{name:<{LABEL}}{text}")


def print_lines(name: str, texts: Iterable[str]) -> None:
    """Print several lines that belong to one name, which stands before the first only."""
    for text in texts:
        print_line(name, text)
        name = ""


def wrapped(texts: Iterable[str]) -> Iterator[str]:
    """Texts in lines that fit beside a name; long words, such as paths, stay in one piece."""
    room = max(get_console().width - LABEL, 20)
    for text in texts:
        yield from textwrap.wrap(
            visible(text), room, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )


def print_text(text: str) -> None:
    """Print a text as it is."""
    get_console().print(Text(text.rstrip(" ")), highlight=False, soft_wrap=True)


def say(*blocks: RenderableType) -> None:
    """Print tables and the like, on the console that Lightning's progress bar uses and stays below of."""
    for block in blocks:
        get_console().print(block)


def answer_blocks(rows: Sequence[Mapping[str, Any]], width: int) -> Iterator[Group]:
    """Answers to read, one block each.

    Args:
        rows: Lines of a file of answers.
        width: Of the terminal.
    """
    room = max(width - LABEL, 20)
    for number, row in enumerate(rows, 1):
        grid = Table.grid()
        grid.add_column(width=LABEL)
        grid.add_column(overflow="fold", max_width=room)
        grid.add_row(Text("prompt", "dim"), _short(row["prompt"], room))
        if row.get("reasoning") is not None:
            grid.add_row(Text("reasoning", "dim"), _short(row["reasoning"], room))
        answer = _short(row["answer"], room)
        right = row["scores"].get("exact_match")
        if right is not None:
            answer.stylize("green" if right else "red")
        grid.add_row(Text("answer", "dim"), answer)
        for candidate in row["candidates"][1:]:
            other = _short(candidate["text"], room).append(_score(candidate), "dim")
            grid.add_row(Text("  or", "dim"), other)
        if row["reference"] is not None:
            grid.add_row(Text("reference", "dim"), _short(row["reference"], room))
        yield Group(Text(f"{number}. {visible(row['source'])}", "bold"), grid)


def _score(candidate: Mapping[str, Any]) -> str:
    return "" if candidate["score"] is None else f"  (score {candidate['score']:.2f})"


def _short(text: str, width: int) -> Text:
    """Its first lines; what is empty is said to be."""
    whole = visible(text).strip("\n")
    if not whole:
        return Text("(empty)", "italic")
    shown = "\n".join(whole.split("\n")[:LINES])[: LINES * width]
    return Text(shown if shown == whole else f"{shown} …")
