"""The table of formats: which keys a row has, and which turns they make.

A dialect is a small function from a row to its turns. A row is of the first dialect whose keys it has,
whatever file it comes from. Pictures beside the turns, `task`, `weight` and `system` are the same in every
dialect.
"""

import difflib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

from lightning_vlm.data.conversation import Role
from lightning_vlm.data.read.fields import is_number, json_list
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.referring import EXPRESSIONS, detection, referring
from lightning_vlm.data.read.right_answers import most_common, texts_of_answers
from lightning_vlm.data.read.row_media import COLUMNS, has_media
from lightning_vlm.data.read.turns import Turn, chat_turns, text_turn
from lightning_vlm.data.read.words import describe, quote

Row: TypeAlias = dict[str, Any]
ReadTurns: TypeAlias = Callable[[Row, Location], list[Turn]]
TOOLS = ("tools", "functions")
"""Keys of a row that say which tools there are."""
COMMON = ("task", "weight", "system", "objects", *TOOLS, *COLUMNS)
"""Keys that mean the same in every dialect."""


@dataclass(frozen=True)
class Dialect:
    """One way to write a sample.

    Args:
        name: The project or format that writes samples in this way.
        needs: The keys that a row must have.
        turns: Reads the turns of a row.
        optional: Further keys that it reads.
        needs_picture: Whether a row must have a picture or a video too.
        places_needed: Whether each picture must have its `<image>`; if not, pictures without one stand before
            the first question.
        says_where: Whether the place of pictures without `<image>` is a choice that is worth a line.
        answer: The key of the answer, which may be a list of several right ones.
    """

    name: str
    needs: tuple[str, ...]
    turns: ReadTurns
    optional: tuple[str, ...] = ()
    needs_picture: bool = False
    places_needed: bool = False
    says_where: bool = False
    answer: str | None = None

    @cached_property
    def known(self) -> frozenset[str]:
        """Every key that has an effect."""
        return frozenset((*self.needs, *self.optional, *COMMON))


def dialect_of(row: Row, at: Location) -> Dialect:
    """The first dialect whose keys a row has.

    Raises:
        DataError: There is none; the message has the row's keys and what the nearest dialects would need.
    """
    if row.get("chosen") is not None and row.get("rejected") is not None:
        expected = "one answer to learn; data.columns: {completion: chosen} or {messages: chosen} takes it"
        raise at.error("preference data with 'chosen' and 'rejected'", expected)
    dialect = find_dialect(row)
    if dialect is not None:
        return dialect
    found = f"a row with the keys {quote(row)}" if row else "a row without keys"
    keys = tuple(str(key) for key in row)
    raise at.error(found, _what_is_missing(keys, has_media(row)))


def find_dialect(row: Row) -> Dialect | None:
    """The first dialect whose keys a row has; None if there is none."""
    for dialect in DIALECTS:
        if not all(name in row for name in dialect.needs):
            continue
        if dialect.needs_picture and not has_media(row):
            continue
        return dialect
    return None


def _chat(key: str) -> ReadTurns:
    return lambda row, at: chat_turns(row[key], at / key)


def _question(ask: str) -> ReadTurns:
    """A question, a text or a list of turns, after an optional `history`."""

    def read(row: Row, at: Location) -> list[Turn]:
        question = row[ask]
        if ask == "instruction":
            question = _with_input(question, row.get("input"))
        return _history(row, at) + _turns_of("user", question, at / ask)

    return read


def _with_input(instruction: Any, more: Any) -> Any:
    """An instruction of Alpaca with the text in `input`, joined as LLaMA-Factory joins them."""
    if isinstance(instruction, str) and isinstance(more, str) and more:
        return f"{instruction}\n{more}"
    return instruction


def _pair(ask: str, answer: str) -> ReadTurns:
    """A question and its answer."""
    question = _question(ask)
    return lambda row, at: question(row, at) + _answer(row, answer, at)


def _caption(key: str) -> ReadTurns:
    """A picture alone is the question, its caption the answer."""
    return lambda row, at: [Turn("user", "", at / key), *_answer(row, key, at)]


def _turns_of(role: Role, value: Any, at: Location) -> list[Turn]:
    if _are_turns(json_list(value)):
        return chat_turns(value, at)
    return [text_turn(role, value, at)]


def _are_turns(value: Any) -> bool:
    return _are_objects_with("role", value) or _are_objects_with("from", value)


def _are_objects_with(key: str, value: Any) -> bool:
    """Whether the first object of a list has a key."""
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    return isinstance(first, dict) and key in first


def _answer(row: Row, key: str, at: Location) -> list[Turn]:
    several = all_answers(row, key, at)
    value = row[key]
    at = at / key
    if several is not None:
        return [text_turn("assistant", most_common(several, at), at)]
    has_choices = row.get("choices") or row.get("options")
    if has_choices and is_number(value):
        found = f"{describe(value)}, which stands for one of several choices"
        expected = "the answer as a text: choices can't be read yet, write them into the question"
        raise at.error(found, expected)
    return _turns_of("assistant", value, at)


def all_answers(row: Row, key: str, at: Location) -> list[str] | None:
    """All answers where a row lists several under a key; None where it has one, as a text or as turns."""
    value = row[key]
    may_be_json = isinstance(value, dict) or key in ("answers", "captions")
    if may_be_json:  # a text under another key stays as it is, because an answer may itself be JSON
        value = json_list(value)
    is_one_answer = _are_turns(value) or _are_objects_with("type", value)
    if not isinstance(value, list) or is_one_answer:
        return None
    return texts_of_answers(value, at / key)


def _history(row: Row, at: Location) -> list[Turn]:
    turns: list[Turn] = []
    at = at / "history"
    history = json_list(row.get("history") or [])
    if not isinstance(history, list):
        raise at.wrong(history, "a list of pairs [question, answer]")
    for index, pair in enumerate(history):
        pair_at = at / index
        if not isinstance(pair, list) or len(pair) != 2:
            raise pair_at.wrong(pair, "a pair [question, answer]")
        turns.append(text_turn("user", pair[0], pair_at / 0))
        turns.append(text_turn("assistant", pair[1], pair_at / 1))
    return turns


def _texts(row: Row, at: Location) -> list[Turn]:
    """The Cauldron: a list of rounds, each with `user` and `assistant`."""
    turns: list[Turn] = []
    at = at / "texts"
    rounds = json_list(row["texts"])
    if not isinstance(rounds, list):
        raise at.wrong(rounds, "a list of objects with the keys 'user', 'assistant'")
    for index, item in enumerate(rounds):
        item_at = at / index
        if not _is_round(item):
            raise item_at.wrong(item, "an object with the keys 'user', 'assistant'")
        for name in item:
            if name not in ("user", "assistant", "source"):
                at.reading.notes.ignore(f"texts[*].{name}")
        turns.append(text_turn("user", item["user"], item_at / "user"))
        turns.append(text_turn("assistant", item["assistant"], item_at / "assistant"))
    return turns


def _is_round(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    return item.get("user") is not None and item.get("assistant") is not None


def _question_and_answer(name: str, ask: str, answer: str) -> Dialect:
    optional = ("history", "input") if ask == "instruction" else ("history",)
    return Dialect(name, needs=(ask, answer), turns=_pair(ask, answer), optional=optional, answer=answer)


def _picture_and_caption(key: str) -> Dialect:
    return Dialect(f"picture and {key}", needs=(key,), turns=_caption(key), needs_picture=True, answer=key)


def _question_alone(ask: str) -> Dialect:
    return Dialect(f"{ask} alone", needs=(ask,), turns=_question(ask), optional=("history",))


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
_ALL_PAIRS = itertools.product(_QUESTIONS, _ANSWERS)
_OTHER_PAIRS = [pair for pair in _ALL_PAIRS if pair not in _NAMED_PAIRS.values()]
DIALECTS = (
    Dialect("messages of OpenAI, TRL or LLaMA-Factory", ("messages",), _chat("messages"), says_where=True),
    Dialect("LLaVA or ShareGPT", ("conversations",), _chat("conversations"), places_needed=True),
    Dialect("ShareGPT", ("conversation",), _chat("conversation"), places_needed=True),
    Dialect("the Cauldron", ("texts",), _texts),
    *(_question_and_answer(name, *pair) for name, pair in _NAMED_PAIRS.items()),
    *(_question_and_answer(f"{ask} and {answer}", ask, answer) for ask, answer in _OTHER_PAIRS),
    *(Dialect(f"RefCOCO ({key})", (key, "bbox"), referring(key), needs_picture=True) for key in EXPRESSIONS),
    *map(_picture_and_caption, ("caption", "captions", "description", "text")),
    *map(_question_alone, ("question", "query", "prompt", "problem")),
    Dialect("objects of a picture", ("objects",), detection, needs_picture=True),
)
"""Every dialect, in the order in which they are tried."""
KNOWN = frozenset[str]().union(*(dialect.known for dialect in DIALECTS))
"""Every key that has an effect in some dialect."""


@lru_cache(maxsize=256)  # the rows of a file lack the same keys, and the search is slow
def _what_is_missing(row: tuple[str, ...], has_picture: bool) -> str:
    """What rows with these keys would need to be of the nearest dialects."""
    lacks = [_lack(dialect, row, has_picture) for dialect in _nearest(row)]
    nearest = ", ".join(lacks)
    return f"a known format: {nearest}; data.columns maps other names, as {{question: query, image: img}}"


def _nearest(row: tuple[str, ...]) -> list[Dialect]:
    """The three dialects whose keys are most like those of a row that no dialect reads."""
    names = [name[:80] for name in row if name not in COMMON]

    def likeness(dialect: Dialect) -> float:
        of_each_key = [_likeness(need, names) for need in dialect.needs]
        return sum(of_each_key) / len(of_each_key)

    ranked = sorted(DIALECTS, key=likeness, reverse=True)
    if likeness(ranked[0]) > 0:
        return ranked[:3]
    return [dialect for dialect in DIALECTS if dialect.name in _SHOWN_WHERE_NOTHING_IS_NEAR]


def _likeness(need: str, names: list[str]) -> float:
    """How like a key is to the nearest of some names, 0..1; 0 where none is near."""
    nearest = difflib.get_close_matches(need, names, n=1)
    if not nearest:
        return 0.0
    return difflib.SequenceMatcher(None, need, nearest[0]).ratio()


def _lack(dialect: Dialect, row: tuple[str, ...], has_picture: bool) -> str:
    """A dialect, and what a row would need to be of it."""
    missing = [f"'{name}'" for name in dialect.needs if name not in row]
    if dialect.needs_picture and not has_picture:
        missing.append("'image'")
    return f"{dialect.name} (lacks {' and '.join(missing)})"
