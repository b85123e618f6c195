"""A conversation: one training sample, checked as soon as it exists."""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from lightning_vlm.data.parts import Box as Box
from lightning_vlm.data.parts import Image as Image
from lightning_vlm.data.parts import Located as Located
from lightning_vlm.data.parts import Nothing as Nothing
from lightning_vlm.data.parts import Part, Role, check_number_of_media, check_part, check_weight
from lightning_vlm.data.parts import Point as Point
from lightning_vlm.data.parts import Region as Region
from lightning_vlm.data.parts import Text as Text
from lightning_vlm.data.parts import Video as Video
from lightning_vlm.data.task_table import TaskTable as TaskTable
from lightning_vlm.data.tools import ToolCall, check_tools
from lightning_vlm.errors import DataError, UserError

if TYPE_CHECKING:
    from lightning_vlm.data.batch.windows import Windows


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        role: The speaker.
        parts: The contents, in reading order.
        weight: Multiplies the weight of each token of an answer in the loss. 0 keeps the turn as context
            that is never learned. It has no effect on turns of others.
        reasoning: What the assistant thinks before it answers, without the marks around it.
        calls: The tools that the assistant calls behind its words.
        call_id: Of a tool's turn, the `id` of the call that it is the result of.
        name: Of a tool's turn, the tool.

    >>> Message("assistant", (Text("A dog, wrongly."),), weight=0.0).weight
    0.0
    """

    role: Role
    parts: tuple[Part, ...]
    weight: float = 1.0
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training sample.

    Args:
        messages: Usually an optional system turn, then user and assistant turns in alternation, beginning
            with the user. In other orders (a greeting first, several turns of one role in a row) it is the
            chat template that decides; see `turns.arrange`. What comes after the last answer is a prompt: it
            can be answered, not learned from.
        task: Losses, weights and metrics are kept per task.
        weight: Multiplies the weight of each of its tokens in the loss.
        source: Where it came from, as `file:line`. Every error about it begins with this.
        tools: What each tool is that the assistant may call: a JSON schema, as OpenAI and templates have it.
        references: All right answers, where there are several. Scores compare with them; what is learned is
            the last turn.
        level: What the answer is about, such as `object`, `attribute`, `relation` or `scene`; scores are kept
            for each.
        shown: All that its pictures show, with labels, where that is known; `data.negatives` asks for what
            isn't there. None is what the boxes of all samples with this picture say.
        changes: What was done to it as it was read, each in a sentence; samples are counted by these.
        id: What its data calls it; answers keep it.

    Raises:
        DataError: A wrong role, an empty conversation, a picture in an assistant turn, a box outside 0..1, a
            weight that isn't between 0 and a million, reasoning or calls of anyone but the assistant, or the
            result of a call that isn't there.

    >>> from pathlib import Path
    >>> ask = Message("user", (Image(Path("cat.jpg")), Text("What is this?")))
    >>> Conversation((ask, Message("assistant", (Text("A cat."),))), source="pets.jsonl:1").task
    'default'
    """

    messages: tuple[Message, ...]
    task: str = "default"
    weight: float = 1.0
    source: str = "?"
    tools: tuple[Mapping[str, Any], ...] = ()
    references: tuple[str, ...] = ()
    level: str | None = None
    shown: tuple[Located, ...] | None = None
    changes: tuple[str, ...] = ()
    id: str | int | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight, self.source, "weight")
        check_order(self.messages, self.source, "messages")
        media = 0
        for index, message in enumerate(self.messages):
            key = f"messages[{index}]"
            _check_role(message.role, self.source, f"{key}.role")
            check_weight(message.weight, self.source, f"{key}.weight")
            for place, part in enumerate(message.parts):
                check_part(part, message.role, self.source, f"{key}.content[{place}]")
                media += isinstance(part, Image | Video)
        check_tools(self.messages, self.source)
        check_number_of_media(media, self.source)

    def with_messages(self, messages: tuple[Message, ...]) -> "Conversation":
        """The same with other messages; itself, not checked again, where they are its own."""
        return self if messages == self.messages else replace(self, messages=messages)

    @property
    def only_words(self) -> bool:
        """Whether it has no tools, calls or reasoning of its own, but words, pictures and videos alone."""
        more = any(
            message.role == "tool" or message.calls or message.reasoning is not None
            for message in self.messages
        )
        return not more and not self.tools

    @property
    def images(self) -> tuple[Image, ...]:
        """Its pictures in reading order."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Image))

    @property
    def videos(self) -> tuple[Video, ...]:
        """Its videos in reading order."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Video))


class Conversations(Sequence[Conversation]):
    """Where conversations come from: a file, a data set, a drawing program. It has a length, and items."""

    skipped: Sequence[DataError] = ()
    """The errors of samples that were skipped when it was opened."""
    only_words: bool = False
    """Whether it is known that no sample has tools, calls or reasoning of its own, without reading them."""
    times: int = 0
    """Into how many stretches of an epoch its samples change, as those of `WithNegatives` do; 0: none."""
    windows: "Windows | None" = None
    """Which samples lie together, in a source that is streamed: its samples are checked as they are read, and
    nothing goes through all of them beforehand. None: it isn't."""

    def task_table(self) -> TaskTable:
        """The task of each sample. A source that can tell without building its samples does."""
        return TaskTable.of_samples(self[index].task for index in range(len(self)))

    def files(self) -> "Sequence[Conversations]":
        """The files and data sets that its samples come from; none of one that makes its samples itself."""
        return ()

    def names(self) -> Sequence[str] | None:
        """All names that things in its pictures may have, if each sample says what its own show.

        None where that isn't so: samples must be read for it.
        """
        return None


class Slice(Conversations):
    """A stretch of another source, such as a validation set cut off a training set.

    Args:
        of: The source.
        start: The first item; negative counts from the end.
        stop: The item after the last; None is the end.

    Raises:
        UserError: Nothing lies between them.

    >>> from lightning_vlm.data.drawn import Drawn
    >>> len(Slice(Drawn(size=10), start=-3))
    3
    """

    def __init__(self, of: Conversations, start: int = 0, stop: int | None = None) -> None:
        self._of = of
        self._range = range(len(of))[start:stop]
        self.skipped = of.skipped
        self.only_words = of.only_words
        if not self._range:
            raise UserError(f"Slice: nothing lies between {start} and {stop} of {len(of)} items")

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        return self._of[self._range[index]]

    def task_table(self) -> TaskTable:
        """Of the stretch."""
        names, of = self._of.task_table()
        return TaskTable.of_samples(names[of[index]] for index in self._range)

    def files(self) -> Sequence[Conversations]:
        """Of the source."""
        return self._of.files()

    def names(self) -> Sequence[str] | None:
        """Of the source."""
        return self._of.names()


class Chain(Conversations):
    """Several sources, one after the other.

    Args:
        sources: At least one.

    Raises:
        UserError: None, or one that is streamed.

    >>> from lightning_vlm.data.drawn import Drawn
    >>> len(Chain([Drawn(size=10), Drawn(size=5)]))
    15
    """

    def __init__(self, sources: list[Conversations]) -> None:
        if not sources:
            raise UserError("Chain: sources is an empty list; give at least one")
        if any(source.windows for source in sources):
            raise UserError("Chain: streamed data are one source; name all shards at once, as {a,b}/*.jsonl")
        self._sources = sources
        self.skipped = [error for source in sources for error in source.skipped]
        self.only_words = all(source.only_words for source in sources)
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        index = range(len(self))[index]
        place = bisect.bisect_right(self._ends, index)
        before = self._ends[place - 1] if place else 0
        return self._sources[place][index - before]

    def task_table(self) -> TaskTable:
        """Of all sources, one after the other."""
        tables = [source.task_table() for source in self._sources]
        return TaskTable.of_samples(names[number] for names, of in tables for number in of)

    def files(self) -> Sequence[Conversations]:
        """Of all sources."""
        return [file for source in self._sources for file in source.files()]

    def names(self) -> Sequence[str] | None:
        """Of all sources, if all know theirs."""
        found: list[str] = []
        for source in self._sources:
            names = source.names()
            if names is None:
                return None
            found += names
        return found


def check_order(messages: Sequence[Message], source: str, key: str) -> None:
    """Raise if nobody says anything, or only the system."""
    if not messages:
        raise DataError(source, key, "an empty list", "at least one user turn")
    if all(message.role == "system" for message in messages):
        raise DataError(source, key, "only a system turn", "at least one user turn")


def _check_role(role: Role, source: str, key: str) -> None:
    if role not in get_args(Role):
        roles = ", ".join(map(repr, get_args(Role)))
        raise DataError(source, key, f"'{role}'", f"one of {roles}")
