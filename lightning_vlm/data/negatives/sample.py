"""One negative: a sample's question about something else, which isn't there."""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

from lightning_vlm.data.conversation import (
    Box,
    Conversation,
    Image,
    Located,
    Message,
    Nothing,
    Part,
    Point,
    Region,
    Text,
    Video,
)
from lightning_vlm.data.negatives.names import Names

_TRIES = 60
"""How often an empty part of a picture is sought."""


class _Round(NamedTuple):
    """A question and its answer, and what was shown before and in it."""

    media: list[Part]
    question: Message
    answer: Message


def absent_thing(
    conversation: Conversation,
    names: Names,
    shown: Sequence[Located],
    rng: Random,
    hard: float,
    question: str,
) -> Conversation | None:
    """Ask for a thing that isn't there, in one round.

    Args:
        conversation: Has a round whose answer has boxes with labels.
        names: Those that there are.
        shown: What its pictures show.
        rng: Chooses.
        hard: How likely a name like those of what is shown is taken.
        question: What is asked where the round's own question doesn't contain the label.

    Returns:
        None where the conversation has no such round, or no name is known to be absent.
    """
    rounds = [one for one in _rounds(conversation) if _labels(one.answer) and not _places(one.question)]
    if not rounds:
        return None
    chosen = rng.choice(rounds)
    asked = _labels(chosen.answer)[0]
    there = [part.label for part in shown if part.label]
    there += [label for one in _rounds(conversation) for label in _labels(one.answer)]
    name = names.hard(asked, there, rng) if rng.random() < hard else None
    name = name or names.random(there, rng)
    if name is None:
        return None
    return _sample(conversation, chosen, _renamed(chosen.question, asked, name, question), Nothing())


def empty_place(
    conversation: Conversation, shown: Sequence[Located], rng: Random, nothing: str
) -> Conversation | None:
    """Ask what is in a box where nothing is, in one round.

    Args:
        conversation: Has a round whose question has one box, and whose answer has none.
        shown: What its pictures show.
        rng: Chooses.
        nothing: The answer.

    Returns:
        None where there is no such round, or no free place was found.
    """
    rounds = [
        one for one in _rounds(conversation) if len(_places(one.question)) == 1 and not _places(one.answer)
    ]
    if not rounds:
        return None
    chosen = rng.choice(rounds)
    (asked,) = _places(chosen.question)
    if not isinstance(asked, Box):
        return None
    box = _free(asked, [asked, *shown], rng)
    if box is None:
        return None
    parts = [box if part is asked else part for part in chosen.question.parts]
    return _sample(conversation, chosen, parts, Text(nothing))


def _rounds(conversation: Conversation) -> list[_Round]:
    """The questions with their answers, each with all pictures and videos up to it."""
    rounds = []
    media: list[Part] = []
    asked: Message | None = None
    for message in conversation.messages:
        if message.role == "user":
            asked = message
        elif message.role == "assistant" and asked is not None:
            inside = [part for part in asked.parts if isinstance(part, Image | Video)]
            rounds.append(_Round([*media, *inside], asked, message))
            media += inside
            asked = None
    return rounds


def _places(message: Message) -> list[Located]:
    return [part for part in message.parts if isinstance(part, Box | Point | Region)]


def _labels(message: Message) -> list[str]:
    return [part.label for part in _places(message) if part.label]


def _renamed(message: Message, asked: str, name: str, otherwise: str) -> list[Part]:
    """A question with another name in place of the one that it asks for, in the plural too."""
    plural = re.compile(rf"\b{re.escape(asked)}(e?s)?\b", re.IGNORECASE)
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, Text):
            part = replace(part, text=plural.sub(lambda found: _like(name, found[1]), part.text))
        parts.append(part)
    if parts != list(message.parts):
        return parts
    return [*(part for part in parts if isinstance(part, Image | Video)), Text(otherwise.format(name))]


def _like(name: str, ending: str | None) -> str:
    """A name in the plural if there is an ending of one."""
    if not ending or (name.endswith("s") and not name.endswith("ss")):
        return name
    return f"{name}es" if re.search(r"(s|x|z|ch|sh)$", name) else f"{name}s"


def _sample(
    conversation: Conversation, chosen: _Round, question: Sequence[Part], answer: Part
) -> Conversation:
    """One round, behind the system turns and with all pictures that the round has seen."""
    words = [part for part in question if not isinstance(part, Image | Video)]
    inside = [part for part in question if isinstance(part, Image | Video)]
    before = chosen.media[: len(chosen.media) - len(inside)]
    parts = [*before, *question] if inside else [*chosen.media, *words]
    system = [message for message in conversation.messages if message.role == "system"]
    messages = (
        *system,
        Message("user", tuple(parts)),
        Message("assistant", (answer,), weight=chosen.answer.weight),
    )
    return replace(conversation, messages=messages, source=f"{conversation.source} (negative)")


def _free(asked: Box, shown: Sequence[Located], rng: Random) -> Box | None:
    """A box that touches nothing that is shown, of the size of another or smaller; None if none is found."""
    if any(part.pixels != asked.pixels for part in shown):
        return None
    taken = [_around(part) for part in shown]
    limits = (1.0, 1.0)
    if asked.pixels:  # the picture reaches at least as far as what lies in it
        limits = max(box[2] for box in taken), max(box[3] for box in taken)
    width, height = asked.xyxy[2] - asked.xyxy[0], asked.xyxy[3] - asked.xyxy[1]
    for number in range(_TRIES):
        shrunk = 1 - number / (2 * _TRIES)
        wide, high = width * shrunk, height * shrunk
        x, y = rng.uniform(0, limits[0] - wide), rng.uniform(0, limits[1] - high)
        box = (x, y, min(x + wide, limits[0]), min(y + high, limits[1]))
        if not any(_touch(box, other) for other in taken):
            return replace(asked, xyxy=box, label=None)
    return None


def _around(part: Located) -> tuple[float, ...]:
    """The box around a part."""
    xs, ys = part.numbers[::2], part.numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _touch(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
