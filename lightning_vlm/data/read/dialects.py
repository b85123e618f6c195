"""The table of formats: which keys a row has, and which turns they make.

A dialect is a small function from a row to its turns. A row is of the first dialect whose keys it has,
whatever file it comes from. Pictures beside the turns, `task`, `weight` and `system` are the same in every
dialect.
"""

import difflib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

from lightning_vlm.data.read.fields import is_number, json_list, names, show
from lightning_vlm.data.read.pictures import COLUMNS, is_empty
from lightning_vlm.data.read.reading import Reading
from lightning_vlm.data.read.turns import Turn, chat_turns, text_turn
from lightning_vlm.errors import DataError

Row: TypeAlias = dict[str, Any]
ReadTurns: TypeAlias = Callable[[Row, str, Reading], list[Turn]]
COMMON = ("task", "weight", "system", *COLUMNS)
"""Keys that mean the same in every dialect."""


@dataclass(frozen=True)
class Dialect:
    """One way to write a sample.

    Args:
        name: The project or format that writes samples in this way.
        needs: The keys that a row must have.
        turns: Reads the turns of a row.
        optional: Further keys that it reads.
        needs_picture: Whether a row must have a picture too.
        places_needed: Whether each picture must have its `<image>`; if not, pictures without one stand before
            the first question.
        says_where: Whether the place of pictures without `<image>` is a choice that is worth a line.
    """

    name: str
    needs: tuple[str, ...]
    turns: ReadTurns
    optional: tuple[str, ...] = ()
    needs_picture: bool = False
    places_needed: bool = False
    says_where: bool = False

    @cached_property
    def known(self) -> frozenset[str]:
        """Every key that has an effect."""
        return frozenset((*self.needs, *self.optional, *COMMON))


def dialect_of(row: Row, source: str) -> Dialect:
    """The first dialect whose keys a row has.

    Raises:
        DataError: There is none; the message has the row's keys and what the nearest dialects would need.
    """
    if row.get("chosen") is not None and row.get("rejected") is not None:
        found = "preference data with 'chosen' and 'rejected'"
        expected = "one answer to learn; data.columns: {completion: chosen} or {messages: chosen} takes it"
        raise DataError(source, "", found, expected)
    dialect = find_dialect(row)
    if dialect is not None:
        return dialect
    has_picture = _has_picture(row)
    found = f"a row with the keys {names(row)}" if row else "a row without keys"
    raise DataError(source, "", found, _what_is_lacking(tuple(map(str, row)), has_picture))


def find_dialect(row: Row) -> Dialect | None:
    """The first dialect whose keys a row has; None if there is none."""
    has_picture = _has_picture(row)
    for dialect in DIALECTS:
        if all(name in row for name in dialect.needs) and (has_picture or not dialect.needs_picture):
            return dialect
    return None


def _has_picture(row: Row) -> bool:
    return any(name in row and not is_empty(row[name]) for name in COLUMNS)


def _chat(key: str) -> ReadTurns:
    def read(row: Row, source: str, reading: Reading) -> list[Turn]:
        return chat_turns(row[key], source, key, reading)

    return read


def _pair(ask: str, answer: str | None) -> ReadTurns:
    """A question and its answer, each a text or a list of turns, after an optional `history`."""

    def read(row: Row, source: str, reading: Reading) -> list[Turn]:
        turns = _history(row, source)
        question, more = row[ask], row.get("input") if ask == "instruction" else None
        if isinstance(question, str) and isinstance(more, str) and more:
            question = f"{question}\n{more}"  # as LLaMA-Factory joins them
        turns += _turns_of("user", question, source, ask, reading)
        if answer is not None:
            turns += _answer(row, source, answer, reading)
        return turns

    return read


def _turns_of(role: Any, value: Any, source: str, key: str, reading: Reading) -> list[Turn]:
    if _are_turns(json_list(value)):
        return chat_turns(value, source, key, reading)
    return [text_turn(role, value, source, key)]


def _are_turns(value: Any) -> bool:
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return False
    return "role" in value[0] or "from" in value[0]


def _are_parts(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict) and "type" in value[0]


def _answer(row: Row, source: str, key: str, reading: Reading) -> list[Turn]:
    value = row[key]
    if isinstance(value, dict) or key in ("answers", "captions"):  # an answer may itself be JSON
        value = json_list(value)
    choices = row.get("choices") or row.get("options")
    if choices and is_number(value):
        expected = "the answer as a text: choices can't be read yet, write them into the question"
        raise DataError(source, key, f"{show(value)}, which stands for one of several choices", expected)
    if isinstance(value, list) and not _are_turns(value) and not _are_parts(value):
        value = _most_common(value, source, key, reading)
    return _turns_of("assistant", value, source, key, reading)


def _most_common(values: list[Any], source: str, key: str, reading: Reading) -> str:
    """The most frequent one; of equally frequent ones, the first."""
    texts = []
    for index, value in enumerate(values):
        if isinstance(value, dict):
            value = value.get("answer", value.get("text"))
        if is_number(value):
            value = str(value)
        if not isinstance(value, str):
            expected = "a text, or an object with 'answer'"
            raise DataError(source, f"{key}[{index}]", show(values[index]), expected)
        texts.append(value)
    if not texts:
        raise DataError(source, key, "an empty list", "at least one answer")
    if len(set(texts)) > 1:
        reading.notes.say(f"of several '{key}' the most common is learned, the first of equals")
    return Counter(texts).most_common(1)[0][0]


def _history(row: Row, source: str) -> list[Turn]:
    turns: list[Turn] = []
    history = json_list(row.get("history") or [])
    if not isinstance(history, list):
        raise DataError(source, "history", show(history), "a list of pairs [question, answer]")
    for index, pair in enumerate(history):
        key = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(source, key, show(pair), "a pair [question, answer]")
        turns.append(text_turn("user", pair[0], source, f"{key}[0]"))
        turns.append(text_turn("assistant", pair[1], source, f"{key}[1]"))
    return turns


def _texts(row: Row, source: str, reading: Reading) -> list[Turn]:
    """The Cauldron: a list of rounds, each with `user` and `assistant`."""
    turns = []
    rounds = json_list(row["texts"])
    if not isinstance(rounds, list):
        raise DataError(source, "texts", show(rounds), "a list of objects with the keys 'user', 'assistant'")
    for index, item in enumerate(rounds):
        key = f"texts[{index}]"
        if not isinstance(item, dict) or item.get("user") is None or item.get("assistant") is None:
            raise DataError(source, key, show(item), "an object with the keys 'user', 'assistant'")
        for name in item:
            if name not in ("user", "assistant", "source"):
                reading.notes.ignore(f"texts[*].{name}")
        turns.append(text_turn("user", item["user"], source, f"{key}.user"))
        turns.append(text_turn("assistant", item["assistant"], source, f"{key}.assistant"))
    return turns


def _caption(key: str) -> ReadTurns:
    """A picture alone is the question, its caption the answer."""

    def read(row: Row, source: str, reading: Reading) -> list[Turn]:
        return [Turn("user", "", key, key), *_answer(row, source, key, reading)]

    return read


def _question_and_answer(name: str, ask: str, answer: str) -> Dialect:
    optional = ("history", "input") if ask == "instruction" else ("history",)
    return Dialect(name, (ask, answer), _pair(ask, answer), optional)


_NAMED_PAIRS = {
    "question and answer": ("question", "answer"),
    "question and answers of VQA": ("question", "answers"),
    "prompt and completion of TRL": ("prompt", "completion"),
    "query and response of ms-swift": ("query", "response"),
    "Alpaca": ("instruction", "output"),
}
_SHOWN_WHERE_NOTHING_IS_NEAR = (
    "messages of OpenAI, TRL or LLaMA-Factory",
    "LLaVA or ShareGPT",
    "question and answer",
)
_QUESTIONS = ("question", "query", "prompt", "instruction", "problem", "user", "input")
_ANSWERS = ("answer", "answers", "response", "completion", "output", "solution", "assistant", "label")
_OTHER_PAIRS = [pair for pair in itertools.product(_QUESTIONS, _ANSWERS) if pair not in _NAMED_PAIRS.values()]
DIALECTS = (
    Dialect("messages of OpenAI, TRL or LLaMA-Factory", ("messages",), _chat("messages"), says_where=True),
    Dialect("LLaVA or ShareGPT", ("conversations",), _chat("conversations"), places_needed=True),
    Dialect("ShareGPT", ("conversation",), _chat("conversation"), places_needed=True),
    Dialect("the Cauldron", ("texts",), _texts),
    *(_question_and_answer(name, *pair) for name, pair in _NAMED_PAIRS.items()),
    *(_question_and_answer(f"{ask} and {answer}", ask, answer) for ask, answer in _OTHER_PAIRS),
    *(
        Dialect(f"picture and {key}", (key,), _caption(key), needs_picture=True)
        for key in ("caption", "captions", "description", "text")
    ),
    *(
        Dialect(f"{ask} alone", (ask,), _pair(ask, None), ("history",))
        for ask in ("question", "query", "prompt", "problem")
    ),
)
"""Every dialect, in the order in which they are tried."""
KNOWN = frozenset(name for dialect in DIALECTS for name in dialect.known)
"""Every key that has an effect in some dialect."""


@lru_cache(maxsize=256)  # the rows of a file lack the same keys, and the search is slow
def _what_is_lacking(row: tuple[str, ...], has_picture: bool) -> str:
    """What rows with these keys would need to be of the nearest dialects."""
    nearest = ", ".join(_lack(dialect, row, has_picture) for dialect in _nearest(row))
    return f"a known format: {nearest}; data.columns maps other names, as {{question: query, image: img}}"


def _nearest(row: tuple[str, ...]) -> list[Dialect]:
    """The three dialects whose keys are most like those of a row."""

    def likeness(need: str) -> float:
        near = difflib.get_close_matches(need, [name[:80] for name in row], 1)
        return difflib.SequenceMatcher(None, need, near[0]).ratio() if near else 0.0

    def likeness_of_all(dialect: Dialect) -> float:
        return sum(map(likeness, dialect.needs)) / len(dialect.needs)

    if not any(likeness_of_all(dialect) for dialect in DIALECTS):
        return [dialect for dialect in DIALECTS if dialect.name in _SHOWN_WHERE_NOTHING_IS_NEAR]
    return sorted(DIALECTS, key=likeness_of_all, reverse=True)[:3]


def _lack(dialect: Dialect, row: tuple[str, ...], has_picture: bool) -> str:
    """A dialect, and what a row would need to be of it."""
    lacks = [f"'{name}'" for name in dialect.needs if name not in row]
    if dialect.needs_picture and not has_picture:
        lacks.append("'image'")
    return f"{dialect.name} (lacks {' and '.join(lacks)})"
