"""The turns of a conversation in an order that a chat template takes, and the texts in them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from lightning_vlm.data.conversation import (
    Conversation,
    Image,
    Located,
    Message,
    Nothing,
    Part,
    Role,
    Text,
    Video,
)
from lightning_vlm.data.render.text_span import TextSpan as TextSpan
from lightning_vlm.data.render.text_span import WrittenRun
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind

Accepts: TypeAlias = Callable[[tuple[str, ...]], bool]
"""Whether a chat template writes every one of some turns, given their roles."""

KEPT_APART = "several turns of one role come in a row; they are kept apart, as the chat template writes them"
MERGED = (
    "several turns of one role come in a row; they are written as one turn with a new line between them, "
    "because the chat template refuses them"
)
GREETING = (
    "an assistant turn comes first; an empty user turn is put before it, because the chat template refuses "
    "it there"
)
UNLEARNED = (
    "an earlier answer isn't learned, because the chat template writes it otherwise once later turns follow; "
    "training and validation make a sample of its own for it"
)
THINKS_NOTHING = (
    "an answer has no reasoning, and the model learns to write the marks of reasoning around nothing; "
    "model.template_options, such as {enable_thinking: false}, may put them into the prompt"
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

    @property
    def parts(self) -> Iterator[Part]:
        """What its messages hold, in reading order."""
        return itertools.chain.from_iterable(message.parts for message in self.messages)


def arrange(messages: Sequence[Message], accepts: Accepts) -> tuple[list[Turn], tuple[str, ...]]:
    """Turns in an order that a chat template takes, and what was changed for that.

    Alternating turns of user and assistant stay as they are. Others do too where the template writes them.
    Where it doesn't, a greeting gets an empty user turn before it, and neighbours of one role become one; not
    where tools are called or reasoning is written. What no change makes acceptable stays as it is, for the
    template to refuse in its own words.

    Args:
        messages: Of a conversation.
        accepts: What the template takes.
    """
    turns = [Turn(message.role, (message,), index) for index, message in enumerate(messages)]
    greeting = next(place for place, turn in enumerate(turns) if turn.role != "system")
    greets = turns[greeting].role == "assistant"
    repeats = any(before.role == after.role != "tool" for before, after in itertools.pairwise(turns))
    if not greets and not repeats:
        return turns, ()
    if any(turn.role == "tool" or has_more_than_words(turn) for turn in turns):
        return turns, (KEPT_APART,) if repeats else ()
    arrangements: list[tuple[list[Turn], tuple[str, ...]]] = [(turns, ())]
    if greets:
        answered = [*turns[:greeting], Turn("user", (), greeting), *turns[greeting:]]
        arrangements.append((answered, (GREETING,)))
    if repeats:
        apart = [(order, (*changes, KEPT_APART)) for order, changes in arrangements]
        merged = [(_merge(order), (*changes, MERGED)) for order, changes in arrangements]
        arrangements = apart + merged
    for order, changes in arrangements:
        if accepts(tuple(turn.role for turn in order)):
            return order, changes
    return turns, ()


def until_last_answer(conversation: Conversation) -> tuple[Message, ...]:
    """The messages of a conversation without those behind its last answer; DataError if there is none."""
    for end in range(len(conversation.messages), 0, -1):
        if conversation.messages[end - 1].role == "assistant":
            return conversation.messages[:end]
    expected = "at least one answer to learn from (data.columns says which column it is in)"
    raise DataError(conversation.source, "messages", "no assistant turn", expected, "no_answer")


def round_ends(turns: Sequence[Turn]) -> list[int]:
    """Behind which turns a conversation may be cut: behind the last answer of each round.

    A call of a tool is followed by its result and another answer.

    >>> [round_ends([Turn(role, (), 0) for role in roles]) for roles in (["user", "assistant"] * 2, ["user"])]
    [[2, 4], []]
    """
    ends = []
    for end, turn in enumerate(turns, 1):
        round_goes_on = end < len(turns) and turns[end].role in ("assistant", "tool")
        if turn.role == "assistant" and not round_goes_on:
            ends.append(end)
    return ends


def first_learned(turns: Sequence[Turn]) -> int:
    """The first answer that weighs something, where earlier ones weigh nothing; else -1.

    A conversation isn't cut before it, because nothing would be learned from the rest.
    """
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    learned = [place for place in answers if any(message.weight for message in turns[place].messages)]
    return learned[0] if learned and learned[0] != answers[0] else -1


def text_spans(turn: Turn) -> Iterator[TextSpan | Image | Video]:
    """The texts of a turn in order, neighbours joined, and its pictures and videos.

    An empty turn has an empty text.

    Between texts of different messages comes a new line, which belongs to the later one.
    """
    pieces: list[_Piece] = []
    for index, message in enumerate(turn.messages):
        for part in message.parts:
            if isinstance(part, Image | Video):
                if pieces:
                    yield _join(pieces, turn)
                pieces = []
                yield part
                continue
            if pieces and pieces[-1].message != index:
                pieces.append(_Piece(index, "\n", _kind(Text(""), turn.role)))
            text = part.text if isinstance(part, Text | WrittenRun) else str(part)
            run = part if isinstance(part, WrittenRun) else None
            pieces.append(_Piece(index, text, _kind(part, turn.role), run))
    if pieces or not any(message.parts for message in turn.messages):
        yield _join(pieces, turn)


def reasoning_span(turn: Turn) -> TextSpan | None:
    """What the assistant thinks before the words of a turn."""
    for message in turn.messages:
        if message.reasoning is not None:
            return TextSpan(
                text=message.reasoning,
                kinds=bytes([Kind.RESPONSE]) * len(message.reasoning),
                weights=np.full(len(message.reasoning), message.weight, np.float32),
                answer=True,
                end_weight=message.weight,
                key=f"messages[{turn.first}].reasoning",
                reasoning=True,
            )
    return None


def has_more_than_words(turn: Turn) -> bool:
    """Whether it holds reasoning or calls of tools."""
    return any(message.calls or message.reasoning is not None for message in turn.messages)


def plain_text(turn: Turn) -> str:
    """All words of a turn."""
    return "".join(span.text for span in text_spans(turn) if isinstance(span, TextSpan))


class _Piece(NamedTuple):
    """A text within a `TextSpan`: which message of the turn it is from, its kind, and what boxes it is."""

    message: int
    text: str
    kind: Kind
    run: WrittenRun | None = None


def _join(pieces: Sequence[_Piece], turn: Turn) -> TextSpan:
    answer = turn.role == "assistant"
    # Without messages, or for the user and the system, weights have no effect.
    weights = [message.weight if answer else 1.0 for message in turn.messages]
    each = [np.full(len(piece.text), weights[piece.message], np.float32) for piece in pieces]
    boxes, coordinates, start = [], [], 0
    for piece in pieces:
        stop = start + len(piece.text)
        if piece.run is not None:
            boxes.append((start, stop))
            for one in piece.run.coordinates:
                coordinates.append(one._replace(start=one.start + start, stop=one.stop + start))
        start = stop
    return TextSpan(
        text="".join(piece.text for piece in pieces),
        kinds=b"".join(bytes([piece.kind]) * len(piece.text) for piece in pieces),
        weights=np.concatenate([np.zeros(0, np.float32), *each]),
        answer=answer,
        end_weight=weights[-1] if weights else 1.0,
        key=f"messages[{turn.first}].content",
        boxes=tuple(boxes),
        coordinates=tuple(coordinates),
    )


def _merge(turns: Sequence[Turn]) -> list[Turn]:
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            last = merged.pop()
            turn = Turn(turn.role, last.messages + turn.messages, last.first)
        merged.append(turn)
    return merged


def _kind(part: Text | Located | Nothing | WrittenRun, role: Role) -> Kind:
    if role != "assistant":
        return Kind.INSTRUCTION
    if not isinstance(part, Text):
        return Kind.BOX
    return Kind.ENTITY if part.entity else Kind.RESPONSE
