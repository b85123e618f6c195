"""What scores need of a row beside its turns: all right answers, and what they are about."""

from collections import Counter
from typing import Any

from lightning_vlm.data.read.fields import is_number, json_list, text_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.words import quote
from lightning_vlm.nearest import did_you_mean

LEVELS = ("object", "attribute", "relation", "scene")
"""What an answer may be about."""
KEYS = ("references", "level")
"""Keys of a row that only scores heed."""


def most_common(texts: list[str], at: Location) -> str:
    """The most frequent answer, which is learned; of equally frequent ones, the first."""
    if not texts:
        raise at.error("an empty list", "at least one answer")
    if len(set(texts)) > 1:
        at.note(f"of several '{at.key}' the most common is learned, the first of equals")
    return Counter(texts).most_common(1)[0][0]


def texts_of_answers(answers: list[Any], at: Location) -> list[str]:
    """The texts of several answers: texts, numbers, or objects with `answer` or `text`."""
    return [_text_of_answer(answer, at / index) for index, answer in enumerate(answers)]


def _text_of_answer(answer: Any, at: Location) -> str:
    text = answer
    if isinstance(answer, dict):
        text = answer.get("answer", answer.get("text"))
    if is_number(text):
        return str(text)
    if not isinstance(text, str):
        raise at.wrong(answer, "a text, or an object with 'answer'")
    return text


def own_references(row: dict[str, Any], at: Location) -> tuple[str, ...]:
    """`references` of our own format, strictly."""
    if "references" not in row:
        return ()
    at = at / "references"
    given = row["references"]
    if not isinstance(given, list):
        raise at.wrong(given, "a list of texts, all of them right answers")
    return tuple(text_of(text, at / index) for index, text in enumerate(given))


def own_level(row: dict[str, Any], at: Location) -> str | None:
    """`level` of our own format, strictly."""
    if "level" not in row:
        return None
    at = at / "level"
    level = text_of(row["level"], at)
    if level not in LEVELS:
        raise at.wrong(level, f"one of {quote(LEVELS)}{did_you_mean(level, LEVELS, quoted=True)}")
    return level


def any_references(row: dict[str, Any], at: Location) -> tuple[str, ...] | None:
    """`references` of any row, if they are texts; None, and counted as ignored, if they are anything else."""
    given = json_list(row.get("references"))
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return tuple(text_of(text, at / "references") for text in given)
    if "references" in row:
        at.reading.notes.ignore("references")
    return None


def any_level(row: dict[str, Any], at: Location) -> str | None:
    """`level` of any row, if it is one of ours; None, and counted as ignored, if it is anything else."""
    level = row.get("level")
    if isinstance(level, str) and level in LEVELS:
        return level
    if "level" in row:
        at.reading.notes.ignore("level")
    return None
