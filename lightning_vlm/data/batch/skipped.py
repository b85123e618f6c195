"""How many samples were skipped, and whether so many that a run can't learn what it should."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.render.example import TooLong

JUDGE_SKIPPED_AFTER = 64
"""After so many samples a run that has nearly none to learn from is stopped; a shorter epoch at its end."""
JUDGE_WEIGHTS_AFTER = 1024
"""After so many samples a run is stopped in which no token had weight, though no sample was skipped."""
TOO_MANY_SKIPPED = 0.9
"""A run is stopped if this share of its samples or more is skipped."""
WORTH_REPORTING = 0.1
"""A line at the end names the share of skipped samples if it is at least this."""


@dataclass(frozen=True)
class SampleCounts:
    """What became of the samples that were asked for, on one rank or on all.

    Args:
        samples: All of them.
        too_long: Those skipped because they exceed the maximum length.
        shortest: The fewest tokens of one that was too long; 0 if there is none.
        longest: The most tokens of one that was too long.
        bad: Those skipped for another reason.
        first_bad: The error of the first such sample.
        targets: How many tokens have weight.

    >>> counts = SampleCounts(samples=4, too_long=2, shortest=812, longest=1930, targets=9)
    >>> counts += SampleCounts(samples=4, bad=1, first_bad="a.jsonl:7: weight: found -1; expected ...")
    >>> counts.skipped, counts.samples
    (3, 8)
    >>> print(counts.reasons(max_length=32))
    2 longer than data.max_length 32 (812 to 1,930 tokens), 1 bad (a.jsonl:7: weight: found -1; expected ...)
    """

    samples: int = 0
    too_long: int = 0
    shortest: int = 0
    longest: int = 0
    bad: int = 0
    first_bad: str = ""
    targets: int = 0

    @classmethod
    def of_batch(cls, batch: Batch, targets: int) -> "SampleCounts":
        """The counts of one batch."""
        lengths = [error.length for error in batch.skipped if isinstance(error, TooLong)]
        bad = [error for error in batch.skipped if not isinstance(error, TooLong)]
        return cls(
            samples=len(batch.tasks) + len(batch.skipped),
            too_long=len(lengths),
            shortest=min(lengths, default=0),
            longest=max(lengths, default=0),
            bad=len(bad),
            first_bad=str(bad[0]) if bad else "",
            targets=targets,
        )

    def __add__(self, other: "SampleCounts") -> "SampleCounts":
        shortest = [counts.shortest for counts in (self, other) if counts.too_long]
        return SampleCounts(
            samples=self.samples + other.samples,
            too_long=self.too_long + other.too_long,
            shortest=min(shortest, default=0),
            longest=max(self.longest, other.longest),
            bad=self.bad + other.bad,
            first_bad=self.first_bad or other.first_bad,
            targets=self.targets + other.targets,
        )

    def over_ranks(self) -> "SampleCounts":
        """The counts of all ranks together. Every rank must call it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        ranks: list[SampleCounts] = [self] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, self)
        return total(ranks)

    @property
    def skipped(self) -> int:
        """How many samples were skipped."""
        return self.too_long + self.bad

    @property
    def share(self) -> float:
        """The share of samples that were skipped."""
        return self.skipped / max(self.samples, 1)

    def reasons(self, max_length: int | None) -> str:
        """Why samples were skipped, in words."""
        reasons = []
        if self.too_long:
            limit = "the maximum length" if max_length is None else f"data.max_length {max_length:,}"
            lengths = f"{self.shortest:,}"
            if self.longest != self.shortest:
                lengths += f" to {self.longest:,}"
            reasons.append(f"{self.too_long:,} longer than {limit} ({lengths} tokens)")
        if self.bad:
            reasons.append(f"{self.bad:,} bad ({self.first_bad})")
        return ", ".join(reasons)

    def problem(self, max_length: int | None, complete: bool = True) -> str | None:
        """What is wrong if there is nothing, or nearly nothing, to learn from, and what to change.

        Args:
            max_length: What samples may have at most, if that is known.
            complete: Whether these are all samples of a pass. Else few of them say little about the others.
        """
        few = 0 if complete else JUDGE_SKIPPED_AFTER
        nearly_all_skipped = self.share >= TOO_MANY_SKIPPED and self.samples >= few
        few = 0 if complete else JUDGE_WEIGHTS_AFTER
        nothing_has_weight = self.targets == 0 and self.samples >= few
        if not self.samples or not (nearly_all_skipped or nothing_has_weight):
            return None
        if not self.skipped:
            return (
                f"no token of {self.samples:,} samples has weight; expected answers of weight above 0: look "
                "at the samples' weights and at the weights of kinds of tokens"
            )
        much = "all" if self.skipped == self.samples else f"{self.skipped:,}"
        text = f"{much} of {self.samples:,} samples were skipped: {self.reasons(max_length)}"
        if not self.targets and self.skipped < self.samples:
            text += ", and no token of the others has weight"
        if self.too_long:
            text += f"; raise data.max_length (to {self.longest:,} for all), or use smaller pictures"
        return text


def total(counts: Iterable[SampleCounts]) -> SampleCounts:
    """The sum of some counts."""
    return sum(counts, SampleCounts())
