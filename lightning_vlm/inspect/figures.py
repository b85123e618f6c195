"""What was found in the training data, counted."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import PIL.Image
from torch import Tensor

from lightning_vlm.data.conversation import Box, Conversation
from lightning_vlm.data.render.renderer import TooLong
from lightning_vlm.data.render.turns import GREETING, MERGED, TRAILING
from lightning_vlm.errors import DataError
from lightning_vlm.inspect.tokens import Piece
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights


class Picture(NamedTuple):
    """A picture of a sample, and its boxes, each with whether it is part of an answer."""

    image: PIL.Image.Image
    boxes: list[tuple[Box, bool]]


class Fact(NamedTuple):
    """What is counted of one sample.

    Args:
        place: Where it is in the data.
        task: Its task.
        length: Its tokens before anything was cut.
        pictures: How many it has.
        cut: How many of its messages did not fit into `max_length`.
        tokens: Tensor of shape [kinds], int64: its tokens of each kind.
        learned: Tensor of shape [kinds], int64: those of them with weight.
        weight: Tensor of shape [kinds], float64: the weight of each kind.
        changes: What was done to its turns, each in a sentence.
    """

    place: int
    task: str
    length: int
    pictures: int
    cut: int
    tokens: Tensor
    learned: Tensor
    weight: Tensor
    changes: tuple[str, ...]


class LeftOut(NamedTuple):
    """A sample that is not learned from, why, and how long it is if that is why."""

    error: DataError
    length: int | None


class Sample(NamedTuple):
    """One sample to show."""

    conversation: Conversation
    pieces: list[Piece]
    pictures: list[Picture]
    fact: Fact


class Row(NamedTuple):
    """Figures of a task, a kind, or all."""

    name: str
    samples: int
    tokens: int
    learned: int
    weight: float


class Bin(NamedTuple):
    """How many samples are from `start` up to but not including `stop` tokens long."""

    start: int
    stop: int
    kept: int
    cut: int
    left_out: int


@dataclass
class Preview:
    """What `look` found.

    Args:
        name: The model.
        size: Samples in the training data.
        read: How many of them were read.
        table: The weight of each kind.
        max_length: The most tokens of a sample, or None.
        opened: What the source itself left out, of all its data.
        facts: What was counted of each sample that was read and is learned from.
        left_out: Samples that were read and are not.
        samples: Those to show.
        notes: Warnings.
    """

    name: str
    size: int
    read: int
    table: KindWeights
    max_length: int | None
    opened: list[DataError]
    facts: list[Fact] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def kind_weight(self, kind: Kind) -> float:
        """The weight of a kind; that of padding and pictures is always 0."""
        return float(getattr(self.table, kind.name.lower(), 0.0))

    @property
    def total(self) -> Row:
        """Figures of all that was read."""
        return _row("all", self.facts)

    def by_task(self) -> list[Row]:
        """Figures of each task, the most frequent first."""
        tasks: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            tasks[fact.task].append(fact)
        rows = [_row(task, facts) for task, facts in tasks.items()]
        return sorted(rows, key=lambda row: (-row.samples, row.name))

    def by_kind(self) -> dict[Kind, Row]:
        """Figures of each kind; `samples` counts the samples that have it."""
        rows = {}
        for kind in Kind:
            having = [fact for fact in self.facts if fact.tokens[kind]]
            tokens = sum(int(fact.tokens[kind]) for fact in having)
            learned = sum(int(fact.learned[kind]) for fact in having)
            weight = sum(float(fact.weight[kind]) for fact in having)
            rows[kind] = Row(kind.name.lower(), len(having), tokens, learned, weight)
        return rows

    def reasons(self) -> Counter[str]:
        """How many of the samples that were read are left out, by reason."""
        # The same mistake in other turns is the same: messages[3].role, messages[5].role.
        return Counter(
            "too long"
            if isinstance(one.error, TooLong)
            else f"bad {re.sub(r'[0-9]+', '*', one.error.key) or 'sample'}"
            for one in self.left_out
        )

    def lengths(self) -> list[tuple[int, Literal["kept", "cut", "left_out"]]]:
        """How long each sample is before it is cut, and what becomes of it; bad ones have no length."""
        fates: list[tuple[int, Literal["kept", "cut", "left_out"]]] = []
        fates += [(fact.length, "cut" if fact.cut else "kept") for fact in self.facts]
        return fates + [(one.length, "left_out") for one in self.left_out if one.length is not None]

    def bins(self, most: int = 16) -> list[Bin]:
        """The lengths as a histogram of up to `most` bins of a round width."""
        lengths = self.lengths()
        if not lengths:
            return []
        low, high = min(lengths)[0], max(lengths)[0]
        steps = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
        width = next(step for step in steps if high // step - low // step < most)
        counts = Counter((length // width, fate) for length, fate in lengths)
        return [
            Bin(
                place * width,
                (place + 1) * width,
                *(counts[place, fate] for fate in ("kept", "cut", "left_out")),
            )
            for place in range(low // width, high // width + 1)
        ]


def share_words(preview: Preview) -> str:
    """What share of the tokens is learned, in how much data."""
    total = preview.total
    every = preview.read == preview.size
    read = f"all {preview.read:,}" if every else f"{preview.read:,} of {preview.size:,}"
    return (
        f"{percent(total.learned, total.tokens)} of the tokens are learned: {total.learned:,} of "
        f"{total.tokens:,}, in {read} samples"
    )


def sample_words(sample: Sample) -> str:
    """What is learned of one sample."""
    fact, weight = sample.fact, sample.conversation.weight
    words = [f"{int(fact.learned.sum()):,} of {int(fact.tokens.sum()):,} tokens learned"]
    words += [f"sample weight {weight:g}"] if weight != 1 else []
    answers = [one.weight for one in sample.conversation.messages if one.role == "assistant"]
    if set(answers) != {1.0}:
        words.append(f"weights of its answers {', '.join(f'{one:g}' for one in answers[:8])}")
        words[-1] += ", ..." if len(answers) > 8 else ""
    words += [_CHANGES[change] for change in fact.changes if change in _CHANGES]
    every = len(sample.conversation.messages) + fact.cut
    words += [f"its end is cut off: {fact.cut} of {every} messages"] if fact.cut else []
    return ", ".join(words)


_CHANGES = {
    MERGED: "turns of one role merged",
    GREETING: "empty user turn added",
    TRAILING: "turns after the last answer dropped",
}


def turn_words(preview: Preview) -> list[str]:
    """What was done to the turns of samples, a line for each change."""
    counts = Counter(change for fact in preview.facts for change in fact.changes)
    return [f"in {count:,} of {preview.read:,} samples read {change}" for change, count in counts.items()]


def range_words(one: Bin) -> str:
    """The lengths of a bin.

    >>> range_words(Bin(1000, 1100, 3, 0, 0)), range_words(Bin(7, 8, 1, 0, 0))
    ('1,000–1,099', '7')
    """
    last = one.stop - 1
    return f"{one.start:,}" if one.start == last else f"{one.start:,}–{last:,}"


def length_words(preview: Preview) -> str:
    """What the lengths are, and what the limit does to them."""
    lengths = sorted(length for length, _ in preview.lengths())
    if not lengths:
        return "none"
    half = lengths[(len(lengths) - 1) // 2]
    words = f"{lengths[0]:,} to {lengths[-1]:,} tokens before any cutting, half of them up to {half:,}"
    limit = preview.max_length
    if limit is None:
        return f"{words}; there is no max_length"
    over = sum(length > limit for length in lengths)
    return (
        f"{words}; {over:,} exceed max_length {limit:,}" if over else f"{words}; all fit max_length {limit:,}"
    )


def left_out_words(preview: Preview) -> list[str]:
    """How many samples are cut and left out, a line for each."""
    lines = []
    cut = sum(fact.cut > 0 for fact in preview.facts)
    if cut:
        lines.append(
            f"Cut to fit by whole rounds: {cut:,} of {preview.read:,} read ({percent(cut, preview.read)})"
        )
    if preview.left_out:
        count = len(preview.left_out)
        why = ", ".join(f"{reason} ({number:,})" for reason, number in preview.reasons().most_common())
        lines.append(f"Left out: {count:,} of {preview.read:,} read ({percent(count, preview.read)}): {why}")
    if preview.opened:
        lines.append(f"Left out when the data was opened: {len(preview.opened):,} of all")
    return lines or ["Nothing is cut or left out."]


def percent(part: float, whole: float) -> str:
    """A share in percent.

    >>> percent(1, 8), percent(1, 30_000), percent(0, 0)
    ('12.5%', '<0.1%', '–')
    """
    if not whole:
        return "–"
    share = 100 * part / whole
    return "<0.1%" if 0 < share < 0.1 else f"{share:.1f}%"


def _row(name: str, facts: Sequence[Fact]) -> Row:
    tokens, learned = (sum(int(getattr(fact, key).sum()) for fact in facts) for key in ("tokens", "learned"))
    return Row(name, len(facts), tokens, learned, sum(float(fact.weight.sum()) for fact in facts))
