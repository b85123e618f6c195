"""From one row of a data file to a `Conversation`, and errors in the words of the file."""

import re
from typing import Any

from lightning_vlm.data.conversation import Conversation, Image, Message, Part, Text
from lightning_vlm.data.read.dialects import DIALECTS, KNOWN, Dialect, Row, dialect_of
from lightning_vlm.data.read.fields import (
    check_known_key,
    keys,
    number_of,
    role_of,
    show,
    text_of,
    turns,
)
from lightning_vlm.data.read.parts import any_part, is_picture, own_part
from lightning_vlm.data.read.pictures import COLUMNS, RowPictures
from lightning_vlm.data.read.reading import Reading
from lightning_vlm.data.read.turns import OWN_ROLES, Turn, text_turn
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import did_you_mean

REFUSED = {
    "video": "videos can't be read yet",
    "videos": "videos can't be read yet",
    "audio": "sound can't be read yet",
    "audios": "sound can't be read yet",
    "tools": "tools can't be read yet",
    "functions": "tools can't be read yet",
}
"""Keys of a row that would change what is learned, and that nothing here can honour."""
_PLACED_FIRST = "pictures without an '<image>' stand before the first question, as TRL and ms-swift put them"


def own_conversation(row: Any, source: str, reading: Reading) -> Conversation:
    """A row of our own format, see `readers.Messages`. Strict: an unknown key is an error."""
    row = _mapped(row, reading)
    keys(row, source, "", required=["messages"], optional=["task", "weight"])
    messages = []
    for index, turn in enumerate(turns(row["messages"], source, "messages")):
        key = f"messages[{index}]"
        keys(turn, source, key, required=["role", "content"], optional=["weight"])
        role, content = role_of(turn["role"], OWN_ROLES, source, f"{key}.role"), turn["content"]
        weight = number_of(turn.get("weight", 1.0), source, f"{key}.weight")
        key = f"{key}.content"
        if isinstance(content, list):
            parts = [own_part(part, source, f"{key}[{place}]", reading) for place, part in enumerate(content)]
        elif isinstance(content, str):
            parts = [Text(text_of(content, source, key))]
        else:
            raise DataError(source, key, show(content), "a text or a list of parts")
        messages.append(Message(role, tuple(parts), weight))
    return Conversation(tuple(messages), *_task_and_weight(row, source), source)


def any_conversation(row: Any, source: str, reading: Reading) -> Conversation:
    """A row of any dialect, see `readers.read`."""
    row = _renamed(_mapped(row, reading), source, reading)
    dialect = _dialect(row, source, reading)
    _check_other_keys(row, dialect, source, reading)
    pictures = RowPictures(row, source, reading)
    turns_read = dialect.turns(row, source, reading)
    if row.get("system"):
        if turns_read and turns_read[0].role == "system":
            reading.notes.say("'system' is ignored where the first turn is one of the system")
        else:
            turns_read = [text_turn("system", row["system"], source, "system"), *turns_read]
    contents = _Contents(turns_read, pictures, source, reading, dialect)
    try:
        return Conversation(contents.messages, *_task_and_weight(row, source), source)
    except DataError as error:
        raise contents.in_words_of_the_file(error) from None


class _Contents:
    """The messages that some turns make, and where each of their parts stands in the row."""

    def __init__(
        self, turns_read: list[Turn], pictures: RowPictures, source: str, reading: Reading, dialect: Dialect
    ) -> None:
        self._turns = turns_read
        self._pictures = pictures
        self._source = source
        self._reading = reading
        self._dialect = dialect
        # Without a column of pictures, `<image>` is ordinary text.
        self._split_texts = pictures.in_row or dialect.places_needed
        self._split_parts = bool(pictures.images) and not any(map(_has_picture, turns_read))
        self._parts: list[list[Part]] = []
        self._keys: list[list[str]] = []
        for turn in turns_read:
            self._read(turn)
        if pictures.images and not dialect.places_needed:
            self._place_first()
        pictures.check_all_placed()
        self.messages = tuple(
            Message(turn.role, tuple(parts), turn.weight)
            for turn, parts in zip(turns_read, self._parts, strict=True)
        )

    def in_words_of_the_file(self, error: DataError) -> DataError:
        """An error about a conversation, with the key that stands in the file."""
        match = re.match(r"messages\[(\d+)\](?:\.content\[(\d+)\]|\.(\w+))?", error.key)
        if match is None:
            key = error.key.replace("messages", self._dialect.needs[0])
        elif match[2]:
            key = self._keys[int(match[1])][int(match[2])]
        else:
            turn = self._turns[int(match[1])]
            key = turn.role_key if match[3] == "role" else turn.key
        return DataError(self._source, key, error.found, error.expected)

    def _read(self, turn: Turn) -> None:
        """Read the content of one turn."""
        parts: list[Part] = []
        places: list[str] = []
        if isinstance(turn.content, dict):  # a part alone
            turn = turn._replace(content=[turn.content])
        if isinstance(turn.content, list):
            for index, item in enumerate(turn.content):
                key = f"{turn.key}[{index}]"
                part = any_part(item, self._source, key, self._pictures, self._reading)
                pieces = [part]
                if self._split_parts and isinstance(part, Text) and not part.entity:
                    pieces = self._pictures.split(part.text, key)
                parts += pieces
                places += [key] * len(pieces)
        elif not isinstance(turn.content, str):
            raise DataError(self._source, turn.key, show(turn.content), "a text or a list of parts")
        elif self._split_texts:
            parts = self._pictures.split(turn.content, turn.key)
            places = [turn.key] * len(parts)
        else:
            parts = [Text(text_of(turn.content, self._source, turn.key))]
            places = [turn.key]
        self._parts.append(parts)
        self._keys.append(places)

    def _place_first(self) -> None:
        """Put the pictures of the row before the first question if nothing says where they stand."""
        if self._pictures.asked or any(isinstance(part, Image) for parts in self._parts for part in parts):
            return
        for index, turn in enumerate(self._turns):
            if turn.role == "user":
                images = self._pictures.images
                self._parts[index] = [*images, *self._parts[index]]
                self._keys[index] = [*([self._pictures.key] * len(images)), *self._keys[index]]
                self._pictures.asked = len(images)
                if self._dialect.says_where:
                    self._reading.notes.say(_PLACED_FIRST)
                return


def _has_picture(turn: Turn) -> bool:
    return isinstance(turn.content, list) and any(map(is_picture, turn.content))


def _mapped(row: Any, reading: Reading) -> Any:
    """A row with the names that `data.columns` gives to its keys."""
    if not isinstance(row, dict):
        return row
    reading.notes.keys.update(row)
    if not reading.columns:
        return row
    theirs = set(reading.columns.values())
    mapped = {ours: row[name] for ours, name in reading.columns.items() if name in row}
    return {name: value for name, value in row.items() if name not in theirs} | mapped


def _renamed(row: Any, source: str, reading: Reading) -> Row:
    """A row with the keys of tables in small letters, and without its nulls."""
    if not isinstance(row, dict):
        wanted = f"the key '{reading.needs}'" if reading.needs else "keys such as 'messages' or 'question'"
        raise DataError(source, "", show(row), f"an object with {wanted}")
    for name in [name for name in row if not name.islower()]:
        if name.lower() in KNOWN and name.lower() not in row:  # CSV files have `Question` and `Answer`
            row = {key.lower() if key == name else key: value for key, value in row.items()}
    return {name: value for name, value in row.items() if value is not None or name in COLUMNS}


def _dialect(row: Row, source: str, reading: Reading) -> Dialect:
    if reading.needs is None:
        for name in row:
            if name not in KNOWN:
                check_known_key(name, KNOWN, row, source, "")
        return dialect_of(row, source)
    if reading.needs not in row:
        expected = f"the key '{reading.needs}'{did_you_mean(reading.needs, row, quoted=True)}"
        raise DataError(source, "", show(row), expected)
    return next(dialect for dialect in DIALECTS if dialect.needs == (reading.needs,))


def _check_other_keys(row: Row, dialect: Dialect, source: str, reading: Reading) -> None:
    """Refuse what would change what is learned, and note the rest."""
    for name in row:
        if name in dialect.known:
            continue
        if name == "objects" and "<bbox>" in str(row):  # ms-swift
            expected = "boxes as parts of a content: boxes that stand for '<bbox>' can't be read yet"
            raise DataError(source, name, show(row[name]), expected)
        if name not in REFUSED:
            reading.notes.ignore(name)
        elif row[name] and row[name] != "[]":
            expected = f"only words and pictures: {REFUSED[name]}; leave it out"
            raise DataError(source, name, show(row[name]), expected)


def _task_and_weight(row: Row, source: str) -> tuple[str, float]:
    task = text_of(row.get("task", "default"), source, "task")
    if not task:
        raise DataError(source, "task", "an empty text", "the name of a task")
    return task, number_of(row.get("weight", 1.0), source, "weight")
