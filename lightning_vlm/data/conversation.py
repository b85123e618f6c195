"""A conversation: one training sample, checked as soon as it exists."""

import bisect
import itertools
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from lightning_vlm.errors import DataError, UserError

Role: TypeAlias = Literal["system", "user", "assistant"]
MAX_WEIGHT = 1e6
"""The largest weight of a sample or a turn: far larger ones overflow the sums, which are float32."""


@dataclass(frozen=True, slots=True)
class Text:
    """Some words. `entity` marks a key entity of an answer, which may weigh more in the loss."""

    text: str
    entity: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: a path below the reader's image root, the file's bytes, or a URL. Exactly one of them."""

    path: Path | None = None
    data: bytes | None = None
    root: Path | None = None
    """Where `path` must lie. Nothing outside it is ever opened."""
    url: str | None = None
    """Where it is fetched from. Readers only set it where `allow_urls` is true."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box (x1, y1, x2, y2) as fractions 0..1 of a picture's width and height: resizing leaves it true.

    In an answer it is what the model should point at; in a question it is the region that is asked about.
    """

    xyxy: tuple[float, float, float, float]

    def __str__(self) -> str:
        """The box as the model reads and writes it: whole thousandths, as Qwen2-VL and Qwen3-VL do.

        >>> str(Box((0.125, 0.25, 0.5, 1.0)))
        '[125, 250, 500, 1000]'
        """
        thousandths = [round(1000 * value) for value in self.xyxy]
        return str(thousandths)


Part: TypeAlias = Text | Image | Box


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        role: The speaker.
        parts: The contents, in reading order.
        weight: Multiplies the weight of each token of an answer in the loss. 0 keeps the turn as context
            that is never learned. It has no effect on turns of the user or the system.

    >>> Message("assistant", (Text("A dog, wrongly."),), weight=0.0).weight
    0.0
    """

    role: Role
    parts: tuple[Part, ...]
    weight: float = 1.0


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

    Raises:
        DataError: A wrong role, an empty conversation, a picture outside a user or system turn, a
            box outside 0..1, or a weight that isn't between 0 and a million.

    >>> ask = Message("user", (Image(Path("cat.jpg")), Text("What is this?")))
    >>> Conversation((ask, Message("assistant", (Text("A cat."),))), source="pets.jsonl:1").task
    'default'
    """

    messages: tuple[Message, ...]
    task: str = "default"
    weight: float = 1.0
    source: str = "?"

    def __post_init__(self) -> None:
        check_weight(self.weight, self.source, "weight")
        check_order(self.messages, self.source, "messages")
        for index, message in enumerate(self.messages):
            key = f"messages[{index}]"
            _check_role(message.role, self.source, f"{key}.role")
            check_weight(message.weight, self.source, f"{key}.weight")
            for place, part in enumerate(message.parts):
                check_part(part, message.role, self.source, f"{key}.content[{place}]")

    @property
    def images(self) -> tuple[Image, ...]:
        """Its pictures in reading order."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Image))


class TaskTable(NamedTuple):
    """Which task each sample of a source has.

    Args:
        names: The tasks in the order of their first samples.
        of: For each sample the place of its task in `names`; two bytes each.

    >>> TaskTable.of_samples(["vqa", "ocr", "vqa"])
    TaskTable(names=('vqa', 'ocr'), of=array('H', [0, 1, 0]))
    """

    names: tuple[str, ...]
    of: array

    @classmethod
    def of_samples(cls, tasks: Iterable[str]) -> "TaskTable":
        """From the task of each sample.

        Raises:
            UserError: There are more than 65,536.
        """
        numbers: dict[str, int] = {}
        of = array("H")
        for task in tasks:
            number = numbers.setdefault(task, len(numbers))
            if number > 0xFFFF:
                raise UserError(f"found more than 65,536 tasks, the last {task!r}; expected a kind of work")
            of.append(number)
        return cls(tuple(numbers), of)


class Conversations(Sequence[Conversation]):
    """Where conversations come from: a file, a data set, a drawing program. It has a length, and items."""

    skipped: Sequence[DataError] = ()
    """The errors of samples that were skipped when it was opened."""

    def task_table(self) -> TaskTable:
        """The task of each sample. A source that can tell without building its samples does."""
        return TaskTable.of_samples(self[index].task for index in range(len(self)))


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


class Chain(Conversations):
    """Several sources, one after the other.

    Args:
        sources: At least one.

    Raises:
        UserError: None.

    >>> from lightning_vlm.data.drawn import Drawn
    >>> len(Chain([Drawn(size=10), Drawn(size=5)]))
    15
    """

    def __init__(self, sources: list[Conversations]) -> None:
        if not sources:
            raise UserError("Chain: sources is an empty list; give at least one")
        self._sources = sources
        self.skipped = [error for source in sources for error in source.skipped]
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


def check_weight(weight: float, source: str, key: str) -> None:
    """Raise unless a weight is finite, at least 0 and at most `MAX_WEIGHT`."""
    if not (math.isfinite(weight) and weight >= 0):
        raise DataError(source, key, str(weight), "a finite number >= 0")
    if weight > MAX_WEIGHT:
        expected = f"at most {MAX_WEIGHT:,.0f}: sums of weights are kept in float32"
        raise DataError(source, key, str(weight), expected)


def check_order(messages: Sequence[Message], source: str, key: str) -> None:
    """Raise if nobody says anything, or only the system."""
    if not messages:
        raise DataError(source, key, "an empty list", "at least one user turn")
    if all(message.role == "system" for message in messages):
        raise DataError(source, key, "only a system turn", "at least one user turn")


def check_part(part: Part, role: Role, source: str, key: str) -> None:
    """Raise if a part is wrong, or can't stand in a turn of this role."""
    if isinstance(part, Image):
        _check_image(part, role, source, key)
    elif isinstance(part, Box):
        x1, y1, x2, y2 = part.xyxy
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            expected = (
                "x1 <= x2 and y1 <= y2, all between 0 and 1 (divide pixels by the picture's width and height)"
            )
            raise DataError(source, key, f"the box {list(part.xyxy)}", expected)


def _check_image(image: Image, role: Role, source: str, key: str) -> None:
    if role == "assistant":
        expected = "pictures in user or system turns only"
        raise DataError(source, key, "a picture in an assistant turn", expected)
    given = [value for value in (image.path, image.data, image.url) if value is not None]
    if len(given) != 1:
        found = "a picture with both path and bytes (or a URL), or neither"
        raise DataError(source, key, found, "exactly one of them")


def _check_role(role: Role, source: str, key: str) -> None:
    if role not in get_args(Role):
        roles = ", ".join(map(repr, get_args(Role)))
        expected = f"one of {roles}; turns of tools can't be learned yet"
        raise DataError(source, key, f"'{role}'", expected)
