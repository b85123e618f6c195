"""A source with negatives beside its own samples."""

import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from lightning_vlm.data.conversation import Conversation, Conversations, TaskTable
from lightning_vlm.data.negatives.contents import Contents
from lightning_vlm.data.negatives.options import Negatives
from lightning_vlm.data.negatives.sample import absent_thing, empty_place
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

TIMES = 16
"""Into how many stretches an epoch is divided; negatives change from one to the next."""


class WithNegatives(Conversations):
    """Another source with negatives: its own samples first, behind them those about what isn't there.

    What a negative asks for depends on `seed`, on its place and on the time, so it is the same in every
    process and in a resumed run. The time is part of the index: `index + len(self) * time`, in sixteenths of
    an epoch; see `at`. A sample of which no negative can be made comes again as it is.

    Args:
        of: The source. Samples must say what their pictures show, by `shown` or by labels of their boxes.
        ratio: As of `Negatives`; so are the others.
        hard: The share of hard ones.
        schedule: What changes with epochs.
        question: What is asked where a question doesn't contain the label.
        nothing: What is answered about an empty part of a picture.
        seed: Which they are.

    Raises:
        UserError: The source has no such tasks.

    >>> from lightning_vlm.data.drawn import Drawn
    >>> data = WithNegatives(Drawn(size=10, tasks=["grounding"]), ratio={"grounding": 1})
    >>> len(data), data[13].messages[-1].parts
    (20, (Nothing(),))
    """

    times = TIMES

    def __init__(
        self,
        of: Conversations,
        ratio: dict[str, float] | None = None,
        hard: float = 0.5,
        schedule: list[dict[str, float]] | None = None,
        question: str = Negatives.question,
        nothing: str = Negatives.nothing,
        seed: int = 0,
    ) -> None:
        self.options = Negatives(ratio, hard, schedule or (), question, nothing, seed)
        """How many there are, and which."""
        self._of = of
        self.skipped = of.skipped
        self.only_words = of.only_words
        names, tasks = of.task_table()
        self._check_tasks(names, given=ratio)
        ratios = [self.options.ratios.get(name, 0.0) * self.options.most for name in names]
        self._places = array("Q")
        self._numbers = array("H")
        for place, task in enumerate(tasks):
            for number in range(self._count(place, ratios[task])):
                self._places.append(place)
                self._numbers.append(number)
        self._ratios = {name: self.options.ratios.get(name, 0.0) for name in names}
        self._contents = Contents(of)

    @classmethod
    def made(cls, of: Conversations, options: Negatives) -> "WithNegatives":
        """The same, with its options as an object."""
        ratio: Mapping[str, float] | None = options.ratio
        schedule: Any = list(options.schedule)
        more = options.question, options.nothing, options.seed
        return cls(of, None if ratio is None else dict(ratio), options.hard, schedule, *more)

    def __len__(self) -> int:
        return len(self._of) + len(self._places)

    def __iter__(self) -> Iterator[Conversation]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        if index < 0:
            index = range(len(self))[index]
        time, place = divmod(index, len(self))
        return self.at(place, time / TIMES)

    def at(self, index: int, epoch: float) -> Conversation:
        """The sample with a place, at a time in epochs from 0."""
        extra = index - len(self._of)
        if extra < 0:
            return self._of[index]
        place, number = self._places[extra], self._numbers[extra]
        conversation = self._of[place]
        ratio = self._ratios[conversation.task] * self.options.factor_at(epoch)
        if number >= self._count(place, ratio):
            return conversation
        rng = Random(f"{self.options.seed}/{epoch}/{place}/{number}")
        return self._negative(conversation, rng, epoch) or conversation

    def task_table(self) -> TaskTable:
        """Negatives are of the task of the sample that they are made of."""
        names, of = self._of.task_table()
        return TaskTable(names, of + array("H", (of[place] for place in self._places)))

    def names(self) -> Sequence[str] | None:
        """As of the source."""
        return self._of.names()

    def words(self) -> str:
        """How many there are, for people."""
        return f"{len(self._places):,} negatives beside {len(self._of):,} samples"

    def _negative(self, conversation: Conversation, rng: Random, epoch: float) -> Conversation | None:
        shown = self._contents.shown(conversation)
        options = self.options
        hard = options.hard_at(epoch)
        found = absent_thing(conversation, self._contents.names, shown, rng, hard, options.question)
        return found or empty_place(conversation, shown, rng, options.nothing)

    def _count(self, place: int, ratio: float) -> int:
        """How many negatives a sample has; a fraction is the share of samples that have one more."""
        whole = int(ratio)
        chance = zlib.crc32(f"{self.options.seed}/{place}".encode()) / 2**32
        return whole + (chance < ratio - whole)

    def _check_tasks(self, names: Sequence[str], given: Mapping[str, float] | None) -> None:
        if given is None and not set(names) & set(self.options.ratios):
            raise UserError(
                f"negatives: the data has the tasks {', '.join(names)}; expected one of "
                f"{', '.join(self.options.ratios)}, or negatives.ratio with tasks of the data"
            )
        for task in given or ():
            if task not in names:
                raise UserError(f"negatives.ratio: the data has no task {task}{did_you_mean(task, names)}")
