"""Lists of numbers in texts that are JSON, or nearly so: cut off, unquoted, with words around them.

`json.loads` gives all or nothing. Here brackets, strings, numbers and words are taken one after the other,
each once, so that the time grows with the length of a text whatever it says.
"""

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_vlm.data.boxes.collector import NUMBER

_OPEN = re.compile(r"[\[{]")
_TOKEN = re.compile(
    r"(?P<string>\"(?:[^\"\\\n]|\\.)*\"?)"
    r"|(?P<quoted>(?<=[\[{,:])'(?:[^'\\\n]|\\.)*'?|(?<=[\[{,:]\s)'(?:[^'\\\n]|\\.)*'?)"
    rf"|(?P<number>{NUMBER})"
    r"|(?P<word>[^\W\d]\w*)"
    r"|(?P<mark>[\[\]{},])"
)
_COLON = re.compile(r"\s*:")
_NOT_FINITE = {"nan", "inf", "infinity"}
_NO_VALUE = {"null", "none", "true", "false"}


class Listed(NamedTuple):
    """Numbers in brackets.

    Args:
        key: What they are the value of, in lower case.
        numbers: One at least.
        parent: Which list they stand in; 0 for none.
        is_whole: Whether the list is closed. Otherwise its last number may be cut off.
    """

    key: str | None
    numbers: tuple[float, ...]
    parent: int
    is_whole: bool


@dataclass
class Record:
    """What stands in one pair of braces, or lists of numbers outside of any.

    Args:
        lists: Its lists of numbers.
        values: Its other values, by their keys in lower case.
        is_bare: Whether it has no braces.
    """

    lists: list[Listed] = field(default_factory=list)
    values: dict[str, str | float] = field(default_factory=dict)
    is_bare: bool = False


@dataclass
class _Frame:
    """A bracket that is open."""

    is_list: bool
    number: int
    key: str | None
    record: Record | None
    numbers: list[float] = field(default_factory=list)


def records_in(text: str) -> list[Record]:
    """All records of a text, in order.

    >>> records_in('Here: {"bbox_2d": [1, 2, 3, 4,], label: "a cat"')[0].values
    {'label': 'a cat'}
    >>> [one.numbers for one in records_in("at [1, 2] and [[3, 4], [5, 6")[1].lists]
    [(3.0, 4.0), (5.0, 6.0)]
    """
    scan = _Scan()
    if '{\\"' in text:  # JSON as a string of JSON
        text = text.replace('\\"', '"')
    place = 0
    while True:
        opening = _OPEN if not scan.frames else _TOKEN
        found = opening.search(text, place)
        if found is None:
            break
        place = found.end()
        kind = "mark" if opening is _OPEN else str(found.lastgroup)
        colon = _COLON.match(text, place) if kind in ("string", "quoted", "word") else None
        if colon:
            place = colon.end()
        scan.take(kind, found[0], colon is not None)
    scan.close_all()
    return scan.records


class _Scan:
    """What was read so far."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.frames: list[_Frame] = []
        self._lists = 0
        self._key: str | None = None

    def take(self, kind: str, token: str, is_key: bool) -> None:
        """Read one token.

        Args:
            kind: The name of its group in the pattern.
            token: Its text.
            is_key: Whether a colon follows.
        """
        if kind == "mark":
            self._mark(token)
        elif is_key:
            self._key = _string(token).strip().lower() if kind != "word" else token.lower()
        elif kind == "number":
            self._number(float(token))
        elif kind == "word":
            if token.lower() in _NOT_FINITE:
                self._number(float("nan"))
            elif token.lower() not in _NO_VALUE:
                self.close_all()  # words around it
        else:
            self._text(_string(token))

    def close_all(self) -> None:
        """Close what is still open, which is cut off."""
        while self.frames:
            self._close(is_whole=False)

    def _mark(self, mark: str) -> None:
        if mark in "[{":
            self._open(is_list=mark == "[")
        elif mark == ",":
            if self.frames and not self.frames[-1].is_list:
                self._key = None
        else:
            while self.frames and self.frames[-1].is_list != (mark == "]"):
                self._close(is_whole=True)
            if self.frames:
                self._close(is_whole=True)

    def _open(self, is_list: bool) -> None:
        above = self.frames[-1] if self.frames else None
        self._lists += 1
        if is_list:
            key = self._key if above is None or not above.is_list else above.key
            self.frames.append(_Frame(True, self._lists, key, above.record if above else None))
        else:
            record = Record()
            self.records.append(record)
            self.frames.append(_Frame(False, self._lists, None, record))
        self._key = None

    def _close(self, is_whole: bool) -> None:
        frame = self.frames.pop()
        self._key = None
        if not frame.numbers:
            return
        above = self.frames[-1] if self.frames else None
        parent = above.number if above and above.is_list else 0
        listed = Listed(frame.key, tuple(frame.numbers), parent, is_whole)
        last = self.records[-1] if self.records else None
        if frame.record is not None:
            frame.record.lists.append(listed)
        elif last and last.is_bare and parent and last.lists[-1].parent == parent:
            last.lists.append(listed)
        else:
            self.records.append(Record([listed], is_bare=True))

    def _number(self, value: float) -> None:
        frame = self.frames[-1]
        if frame.is_list:
            frame.numbers.append(value)
        elif self._key is not None and frame.record is not None:
            frame.record.values[self._key] = value

    def _text(self, text: str) -> None:
        frame = self.frames[-1]
        if frame.is_list:
            if re.fullmatch(NUMBER, text.strip()):
                frame.numbers.append(float(text))
        elif self._key is not None and frame.record is not None:
            frame.record.values[self._key] = text


def _string(token: str) -> str:
    """What a string says, with or without its closing quote."""
    quote = token[0] if token[:1] in "\"'" else ""
    body = token[len(quote) :]
    if quote and body.endswith(quote):
        body = body[:-1]
    if "\\" not in body:
        return body
    try:
        return str(json.loads(f'"{body}"'))
    except ValueError:
        return body
