"""The shell, as far as the pages of the documentation use it, and what their commands and samples name."""

import glob
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import yaml

from tests.support.pages import ROOT


class FailedError(Exception):
    """A command or block that didn't do what the page says."""


def words_of(line: str, *between: str) -> Iterator[list[str]]:
    """The words of a line of shell, in pieces between some marks.

    >>> list(words_of("cd a && ls 'b c' # words", "&&"))
    [['cd', 'a'], ['ls', 'b c']]
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in lexer:
        found = sorted(glob.glob(word)) if re.search(r"[*?]", word) else []
        words += found or [os.path.expandvars(word)]
    yield from split(words, *between)


def split(words: Sequence[str], *between: str) -> Iterator[list[str]]:
    """The parts of a list between some marks."""
    part: list[str] = []
    for word in words:
        if word in between:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def without_redirect(words: Sequence[str]) -> tuple[list[str], str | None, str]:
    """A command without `> FILE`, the file, and how it is opened."""
    words = list(words)
    for mark, mode in ((">", "w"), (">>", "a")):
        if mark in words:
            place = words.index(mark)
            return words[:place] + words[place + 2 :], words[place + 1], mode
    return words, None, "w"


def configs_of(words: Sequence[str]) -> Iterator[dict]:
    """The configs that a command names, the last one first."""
    for flag, name in reversed(list(pairwise(words))):
        if flag in ("--config", "-c"):
            for file in (Path(name), ROOT / "configs" / name, ROOT / "configs" / f"{name}.yaml"):
                if file.is_file():
                    yield yaml.safe_load(file.read_text("utf-8")) or {}
                    break


def value_of(key: str, words: Sequence[str], configs: Sequence[dict]) -> object:
    """What a command sets a key to: by its words, or by the last of its configs."""
    for place, word in reversed(list(enumerate(words))):
        if word == f"--{key}":
            return words[place + 1]
        if word.startswith(f"--{key}="):
            return word.partition("=")[2]
    section, _, name = key.partition(".")
    for config in configs:
        if name in (config.get(section) or {}):
            return config[section][name]
    return None


def plain(line: str) -> str:
    """A line without its width and its numbers, which differ between machines."""
    return " ".join(re.sub(r"\d+(?:\.\d+)?", "0", line).split())


def samples_of(text: str) -> Iterator[Any]:
    """The samples of a block, of one line or of several each.

    >>> list(samples_of('{"a":\\n 1}\\n{"b": 2}'))
    [{'a': 1}, {'b': 2}]
    """
    decoder, place = json.JSONDecoder(), 0
    text = text.strip()
    while place < len(text):
        sample, place = decoder.raw_decode(text, place)
        yield sample
        place += len(text[place:]) - len(text[place:].lstrip())


def make_media(rows: object) -> None:
    """Make the pictures and videos that samples name and that aren't there."""
    for path in _texts(rows):
        file = Path(path)
        if "\n" in path or "://" in path or path.startswith("data:") or file.is_absolute() or file.exists():
            continue
        if re.fullmatch(r"[\w./-]+\.(png|jpe?g|webp)", path):
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (640, 480), "gray").save(file)
        elif re.fullmatch(r"[\w./-]+\.(mp4|webm|mov)", path):
            from tests.support.videos import write_numbered

            file.parent.mkdir(parents=True, exist_ok=True)
            write_numbered(file, 50)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def check_extras(words: Sequence[str]) -> None:
    """The extras of ours that `pip install` names are there."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    there = set(re.findall(r"^([\w-]+) = \[", table, re.MULTILINE))
    for word in words:
        named = re.match(r"(?:lightning-vlm|\.)\[([\w,-]+)\]", word)
        missing = set(named[1].split(",")) - there if named else set()
        if missing:
            raise FailedError(f"{word}: there is no extra {', '.join(sorted(missing))}")


def check_targets(words: Sequence[str]) -> None:
    """The targets that `make` names are there."""
    there = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    missing = {word for word in words if "=" not in word} - there
    if missing:
        raise FailedError(f"the Makefile has no {', '.join(sorted(missing))}")
