"""What a preview holds: the samples to show, and what was counted in all samples that were read."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.render.example import TooLong
from lightning_vlm.errors import DataError
from lightning_vlm.inspect.boxes import Picture
from lightning_vlm.inspect.tokens import Piece
from lightning_vlm.inspect.videos import Strip
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights

Fate = Literal["kept", "truncated", "skipped"]


@dataclass(frozen=True, eq=False)
class SampleStats:
    """What is counted in one sample.

    Args:
        index: Its index in the data.
        task: Its task.
        length: How many tokens it has before truncation.
        pictures: How many pictures it has.
        videos: How many videos it has.
        truncated: How many of its messages did not fit into `max_length`.
        tokens: Tensor of shape [kinds], int64: its tokens of each kind.
        learned: Tensor of shape [kinds], int64: those of them with weight.
        weight: Tensor of shape [kinds], float64: the weight of each kind.
        changes: What was done to its turns, each in a sentence.
    """

    index: int
    task: str
    length: int
    pictures: int
    videos: int
    truncated: int
    tokens: Tensor
    learned: Tensor
    weight: Tensor
    changes: tuple[str, ...]


class Skipped(NamedTuple):
    """A sample that is not learned from, the reason, and its length if it is too long."""

    error: DataError
    length: int | None


class Sample(NamedTuple):
    """One sample to show."""

    conversation: Conversation
    pieces: list[Piece]
    pictures: list[Picture]
    videos: list[Strip]
    stats: SampleStats


class Totals(NamedTuple):
    """Sums over the samples of a task, over the tokens of a kind, or over everything."""

    name: str
    samples: int
    tokens: int
    learned: int
    weight: float


@dataclass
class Preview:
    """What `scan_data` found.

    Args:
        name: The model.
        size: How many samples the training data has.
        read: How many of them were read.
        token_weights: The weight of each kind.
        max_length: The most tokens of a sample, or None.
        skipped_at_opening: Samples that the source itself skipped, out of all its data.
        stats: What was counted in each sample that was read and is learned from.
        skipped: Samples that were read and are not learned from.
        samples: The samples to show.
        notes: Warnings.
    """

    name: str
    size: int
    read: int
    token_weights: KindWeights
    max_length: int | None
    skipped_at_opening: list[DataError]
    stats: list[SampleStats] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def kind_weight(self, kind: Kind) -> float:
        """The weight of a kind; padding, pictures and videos always have 0."""
        return float(getattr(self.token_weights, kind.name.lower(), 0.0))

    @property
    def total(self) -> Totals:
        """The sums over everything that was read."""
        return _totals("all", self.stats)

    def by_task(self) -> list[Totals]:
        """The sums of each task, the most frequent first."""
        tasks: dict[str, list[SampleStats]] = defaultdict(list)
        for stats in self.stats:
            tasks[stats.task].append(stats)
        totals = [_totals(task, stats) for task, stats in tasks.items()]
        return sorted(totals, key=lambda row: (-row.samples, row.name))

    def by_kind(self) -> dict[Kind, Totals]:
        """The sums of each kind of token."""
        return {kind: _totals(kind.name.lower(), self.stats, kind) for kind in Kind}

    def reasons(self) -> Counter[str]:
        """How many of the samples that were read are skipped, by reason."""
        return Counter(_reason(skipped.error) for skipped in self.skipped)

    def lengths(self) -> list[tuple[int, Fate]]:
        """Each sample's length before truncation, and what becomes of it; bad samples have no length."""
        lengths: list[tuple[int, Fate]] = []
        for stats in self.stats:
            lengths.append((stats.length, "truncated" if stats.truncated else "kept"))
        for skipped in self.skipped:
            if skipped.length is not None:
                lengths.append((skipped.length, "skipped"))
        return lengths


def _totals(name: str, samples: Sequence[SampleStats], kind: Kind | None = None) -> Totals:
    kinds = slice(None) if kind is None else kind
    tokens = sum(int(stats.tokens[kinds].sum()) for stats in samples)
    learned = sum(int(stats.learned[kinds].sum()) for stats in samples)
    weight = sum(float(stats.weight[kinds].sum()) for stats in samples)
    return Totals(name, len(samples), tokens, learned, weight)


def _reason(error: DataError) -> str:
    if isinstance(error, TooLong):
        return "too long"
    # The same mistake in another turn is the same reason: messages[3].role and messages[5].role.
    key = re.sub(r"[0-9]+", "*", error.key)
    return f"bad {key or 'sample'}"
