"""The turns of a conversation in an order that a chat template takes, and the texts in them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from lightning_vlm.data.conversation import Box, Image, Message, Part, Role, Text
from lightning_vlm.kinds import Kind

Writes: TypeAlias = Callable[[tuple[str, ...]], bool]
"""Whether a chat template writes each of some turns, given their roles."""

KEPT_APART = "several turns of one role come in a row; they are kept apart, as the chat template writes them"
MERGED = (
    "several turns of one role come in a row; they are written as one turn with a new line between them, "
    "because the chat template refuses them"
)
GREETING = (
    "an assistant turn comes first; an empty user turn is put before it, because the chat template refuses "
    "it there"
)
TRAILING = "turns come after the last answer; they are dropped, because nothing is learned after it"


class Turn(NamedTuple):
    """What is written as one turn of a chat.

    Args:
        role: The speaker.
        messages: One message; several of one role that were merged; none for an empty turn that was added.
        first: Where the first of them stands in the conversation.
    """

    role: Role
    messages: tuple[Message, ...]
    first: int


class TextSpan(NamedTuple):
    """One stretch of text in a turn, as the chat template gets it.

    Args:
        text: The text.
        kinds: The `Kind` of each of its characters.
        weights: Array of shape [characters], float32: the weight of the turn that each is from.
        answer: Whether it is part of an answer.
        end_weight: The weight of what ends the turn.
        key: Where it stands in the conversation, for errors.
    """

    text: str
    kinds: bytes
    weights: np.ndarray
    answer: bool
    end_weight: float
    key: str

    def part(self, stretch: slice) -> "TextSpan":
        """A part of it."""
        return self._replace(
            text=self.text[stretch], kinds=self.kinds[stretch], weights=self.weights[stretch]
        )


def arrange(messages: Sequence[Message], writes: Writes) -> tuple[list[Turn], tuple[str, ...]]:
    """Turns in an order that a chat template takes, and what was changed for that.

    Alternating turns of user and assistant stay as they are. Others do too where the template writes them.
    Where it doesn't, a greeting gets an empty user turn before it, and neighbours of one role become one.
    What no change makes acceptable stays as it is, for the template to refuse in its own words.

    Args:
        messages: Of a conversation.
        writes: What the template takes.
    """
    apart = [Turn(message.role, (message,), index) for index, message in enumerate(messages)]
    first = next((place for place, turn in enumerate(apart) if turn.role != "system"), len(apart))
    greets = first < len(apart) and apart[first].role == "assistant"
    repeats = any(before.role == after.role for before, after in itertools.pairwise(apart))
    if not greets and not repeats:
        return apart, ()
    answered = [*apart[:first], Turn("user", (), first), *apart[first:]] if greets else apart
    tries: list[tuple[list[Turn], tuple[str, ...]]] = [(apart, (KEPT_APART,) if repeats else ())]
    if greets:
        tries.append((answered, (GREETING, KEPT_APART) if repeats else (GREETING,)))
    if repeats:
        tries.append((_merge(apart), (MERGED,)))
    if greets and repeats:
        tries.append((_merge(answered), (GREETING, MERGED)))
    for turns, changes in tries:
        if writes(tuple(turn.role for turn in turns)):
            return turns, changes
    return apart, ()


def round_ends(turns: Sequence[Turn]) -> list[int]:
    """Behind which turns a conversation may be cut: behind the last answer of each round.

    >>> [round_ends([Turn(role, (), 0) for role in roles]) for roles in (["user", "assistant"] * 2, ["user"])]
    [[2, 4], []]
    """
    roles = [turn.role for turn in turns]
    return [
        place + 1
        for place, role in enumerate(roles)
        if role == "assistant" and roles[place + 1 : place + 2] != ["assistant"]
    ]


def text_spans(turn: Turn) -> Iterator[TextSpan | None]:
    """The texts of a turn in order, neighbours joined; None for each picture. An empty turn has an empty one.

    Between texts of different messages comes a new line, which belongs to the later one.
    """
    run: list[tuple[str, Kind, float]] = []
    parts = [(part, index, message) for index, message in enumerate(turn.messages) for part in message.parts]
    before = 0
    for part, index, message in parts:
        if isinstance(part, Image):
            if run:
                yield _joined(run, turn)
            yield None
            run = []
        else:
            kind, weight = _kind(part, turn.role), message.weight if turn.role == "assistant" else 1.0
            if run and index != before:
                run.append(("\n", _kind(Text(""), turn.role), weight))
            run.append((_words(part), kind, weight))
        before = index
    if run or not parts:
        yield _joined(run, turn)


def plain_text(turn: Turn) -> str:
    """All words of a turn."""
    return "".join(span.text for span in text_spans(turn) if span)


def _merge(turns: Sequence[Turn]) -> list[Turn]:
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            last = merged.pop()
            turn = Turn(turn.role, last.messages + turn.messages, last.first)
        merged.append(turn)
    return merged


def _joined(run: Sequence[tuple[str, Kind, float]], turn: Turn) -> TextSpan:
    answer = turn.role == "assistant"
    lengths = [len(text) for text, _, _ in run]
    return TextSpan(
        text="".join(text for text, _, _ in run),
        kinds=b"".join(bytes([kind]) * len(text) for text, kind, _ in run),
        weights=np.repeat(np.array([weight for _, _, weight in run], np.float32), lengths),
        answer=answer,
        end_weight=turn.messages[-1].weight if answer else 1.0,
        key=f"messages[{turn.first}].content",
    )


def _words(part: Part) -> str:
    return part.text if isinstance(part, Text) else str(part)


def _kind(part: Part, role: Role) -> Kind:
    if role != "assistant":
        return Kind.INSTRUCTION
    if isinstance(part, Box):
        return Kind.BOX
    return Kind.ENTITY if isinstance(part, Text) and part.entity else Kind.RESPONSE
