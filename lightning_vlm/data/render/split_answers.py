"""Samples of conversations whose chat template writes earlier answers otherwise than the model would."""

import bisect
import itertools
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lightning_vlm.data.conversation import Conversation, Conversations, Message, TaskTable
from lightning_vlm.data.render.answer_places import is_plain
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.turns import Turn
from lightning_vlm.errors import DataError

_MOST_PLANS = 10_000
"""How many shapes of conversations are remembered."""


class _Share(NamedTuple):
    """What one sample learns of a conversation: which messages come before its end, and which it learns."""

    stop: int
    learned: frozenset[int]


class SplitAnswers(Conversations):
    """Another source, of whose conversations each answer is learned once, as the model will write it.

    Templates of thinking models leave the reasoning out of answers before the last question. Such an answer
    can't be learned where later turns follow, so that it gets a sample that ends with it; in the others it
    weighs nothing. Which samples there are is known when the source is opened, and their names are those of
    their conversations, `file:line`, with `#1`, `#2`, ...

    Args:
        of: The source.
        renderer: Its template decides.
    """

    def __init__(self, of: Conversations, renderer: Renderer) -> None:
        self._of = of
        self._renderer = renderer
        self._plans: dict[tuple, list[_Share]] = {}
        self.skipped = of.skipped
        counts = (self._count(index) for index in range(len(of)))
        self._ends = array("Q", itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        index = range(len(self))[index]
        place = bisect.bisect_right(self._ends, index)
        conversation = self._of[place]
        shares = self._shares(conversation)
        if len(shares) < 2:
            return conversation
        number = index - (self._ends[place - 1] if place else 0)
        return _sample(conversation, shares[number], number + 1)

    def task_table(self) -> TaskTable:
        """Of the samples, each of the task of its conversation."""
        names, of = self._of.task_table()
        return TaskTable.of_samples(
            names[of[place]] for place, count in enumerate(self._counts()) for _ in range(count)
        )

    @property
    def split(self) -> int:
        """How many conversations are more than one sample."""
        return sum(count > 1 for count in self._counts())

    def _counts(self) -> list[int]:
        return [stop - start for start, stop in itertools.pairwise((0, *self._ends))]

    def _count(self, index: int) -> int:
        try:
            return max(1, len(self._shares(self._of[index])))
        except DataError:  # training comes to it, and says what is wrong
            return 1

    def _shares(self, conversation: Conversation) -> list[_Share]:
        """What each sample of a conversation learns; nothing where the conversation is the sample."""
        turns = self._renderer.turns(conversation)
        places = self._renderer.places
        if places.regular and is_plain(turns, conversation.tools):
            return []
        shape = (bool(conversation.tools), *map(_shape, turns))
        if shape not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[shape] = self._plan(turns, conversation)
        return self._plans[shape]

    def _plan(self, turns: Sequence[Turn], conversation: Conversation) -> list[_Share]:
        """From the last answer on: each sample learns all that it writes as the model would."""
        remaining = {place for place, turn in enumerate(turns) if _weighs(turn)}
        shares: list[_Share] = []
        while remaining:
            last = max(remaining)
            exact = self._renderer.places.learned(turns[: last + 1], conversation.tools)
            learned = {place for place in remaining if exact[place]} | {last}
            remaining -= learned
            messages = [
                index
                for place in learned
                for index in range(turns[place].first, turns[place].first + len(turns[place].messages))
            ]
            shares.insert(0, _Share(turns[last].first + len(turns[last].messages), frozenset(messages)))
        return shares


def split_answers(source: Conversations, renderer: Renderer) -> tuple[Conversations, str | None]:
    """A source whose answers can all be learned, and a line that says what was done; None if nothing was."""
    # Reading all samples once more may take long, as where pictures stand in the rows.
    words_are_words = renderer.places.regular and renderer.template.reasoning is None
    if words_are_words and source.only_words:
        return source, None
    samples = SplitAnswers(source, renderer)
    if not samples.split:
        return source, None
    return samples, (
        f"{samples.split:,} of {len(source):,} conversations are several samples, {len(samples):,} in all: "
        "the chat template writes answers otherwise once later turns follow, so that each is learned as the "
        "model will write it"
    )


def _shape(turn: Turn) -> tuple:
    """All of a turn that decides how a template writes it, but for its words."""
    messages = [
        (
            message.reasoning is not None,
            len(message.calls),
            [type(part).__name__ for part in message.parts],
        )
        for message in turn.messages
    ]
    return turn.role, _weighs(turn), repr(messages)


def _weighs(turn: Turn) -> bool:
    return turn.role == "assistant" and any(message.weight for message in turn.messages)


def _sample(conversation: Conversation, share: _Share, number: int) -> Conversation:
    messages = tuple(
        _unlearned(message) if index not in share.learned else message
        for index, message in enumerate(conversation.messages[: share.stop])
    )
    return replace(conversation, messages=messages, source=f"{conversation.source}#{number}")


def _unlearned(message: Message) -> Message:
    return replace(message, weight=0.0) if message.role == "assistant" else message
