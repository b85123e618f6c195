"""The summary of a preview, which the page and the terminal show: tables, a histogram, sentences."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lightning_vlm.counted import counted
from lightning_vlm.data.render.turns import GREETING, MERGED, THINKS_NOTHING, TRAILING, UNLEARNED
from lightning_vlm.errors import DataError
from lightning_vlm.inspect.preview import Fate, Preview, Sample
from lightning_vlm.outputs.histogram import Bin, bins_of

FATES: dict[Fate, str] = {"kept": "whole", "truncated": "cut by whole rounds", "skipped": "skipped"}
"""What can become of a sample, and what both views call it."""
MOST_BINS = 16
"""How many bins the histogram of lengths has at most."""
MOST_WEIGHTS = 8
"""How many weights of a sample's answers are shown."""
_CHANGES = {
    MERGED: "turns of one role merged",
    GREETING: "empty user turn added",
    TRAILING: "turns after the last answer dropped",
    UNLEARNED: "earlier answers learned elsewhere",
    THINKS_NOTHING: "marks of reasoning around nothing",
}


class Table(NamedTuple):
    """A table of texts."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def kind_table(preview: Preview) -> Table:
    """How many tokens of each kind there are, and how much they weigh."""
    total = preview.total
    rows = []
    for kind, sums in preview.by_kind().items():
        weight = f"{preview.kind_weight(kind):g}"
        share = percent(sums.tokens, total.tokens)
        share_of_weight = percent(sums.weight, total.weight)
        rows.append((sums.name, weight, f"{sums.tokens:,}", share, f"{sums.learned:,}", share_of_weight))
    return Table(("kind", "weight", "tokens", "share", "learned", "share of weight"), rows)


def task_table(preview: Preview) -> Table:
    """How much is learned from each task; the last row is the sum."""
    total = preview.total
    rows = []
    for sums in (*preview.by_task(), total):
        counts = (f"{sums.samples:,}", f"{sums.tokens:,}", f"{sums.learned:,}")
        share_learned = percent(sums.learned, sums.tokens)
        share_of_weight = percent(sums.weight, total.weight)
        rows.append((sums.name, *counts, share_learned, share_of_weight))
    return Table(("task", "samples", "tokens", "learned", "share learned", "share of weight"), rows)


def length_bins(preview: Preview) -> list[Bin]:
    """The histogram of lengths, in bins of a round width."""
    return bins_of(Counter(preview.lengths()), MOST_BINS)


def describe_share(preview: Preview) -> str:
    """What share of the tokens is learned, in how much data."""
    total = preview.total
    read = counted(preview.size, "sample")
    if preview.size > 1:
        read = f"{'all' if preview.read == preview.size else f'{preview.read:,} of'} {read}"
    share = percent(total.learned, total.tokens)
    tokens = f"{total.learned:,} of {total.tokens:,}"
    return f"{share} of the tokens are learned: {tokens}, in {read}"


def describe_sample(sample: Sample) -> str:
    """What is learned from one sample, and what was done to it."""
    stats = sample.stats
    conversation = sample.conversation
    learned = int(stats.learned.sum())
    tokens = int(stats.tokens.sum())
    parts = [f"{learned:,} of {tokens:,} tokens learned"]
    if conversation.weight != 1:
        parts.append(f"sample weight {conversation.weight:g}")
    weights = [f"{message.weight:g}" for message in conversation.messages if message.role == "assistant"]
    if set(weights) != {"1"}:
        shown = ", ".join(weights[:MOST_WEIGHTS])
        more = ", ..." if len(weights) > MOST_WEIGHTS else ""
        parts.append(f"weights of its answers {shown}{more}")
    parts += [_CHANGES[change] for change in stats.changes if change in _CHANGES]
    if stats.truncated:
        messages = len(conversation.messages) + stats.truncated
        parts.append(f"its end is cut off: {stats.truncated} of {messages} messages")
    return ", ".join(parts)


def describe_changes(preview: Preview) -> list[str]:
    """What was done to the turns of samples, a line for each change."""
    counts = Counter(change for stats in preview.stats for change in stats.changes)
    read = f"{counted(preview.read, 'sample')} read"
    return [f"in {count:,} of {read} {change}" for change, count in counts.items()]


def describe_lengths(preview: Preview) -> str:
    """How long the samples are, and how many of them exceed the limit."""
    lengths = [length for length, _ in preview.lengths()]
    if not lengths:
        return "none"
    median = statistics.median_low(lengths)
    sentence = (
        f"{min(lengths):,} to {max(lengths):,} tokens before any cutting, half of them up to {median:,}"
    )
    limit = preview.max_length
    if limit is None:
        return f"{sentence}; there is no max_length"
    over = sum(length > limit for length in lengths)
    fit = f"{over:,} exceed" if over else "all fit"
    return f"{sentence}; {fit} max_length {limit:,}"


def describe_skipped(preview: Preview) -> list[str]:
    """How many samples are truncated and how many are skipped, a line for each."""
    lines = []
    truncated = sum(stats.truncated > 0 for stats in preview.stats)
    if truncated:
        lines.append(f"Cut to fit by whole rounds: {_part_of_read(truncated, preview)}")
    if preview.skipped:
        part = _part_of_read(len(preview.skipped), preview)
        counts = [f"{reason} ({count:,})" for reason, count in preview.reasons().most_common()]
        reasons = ", ".join(counts)
        lines.append(f"Left out: {part}: {reasons}")
    if preview.skipped_at_opening:
        samples = len(preview.skipped_at_opening)
        lines.append(f"Left out when the data was opened: {samples:,} of all")
    return lines or ["Nothing is cut or skipped."]


def _part_of_read(count: int, preview: Preview) -> str:
    share = percent(count, preview.read)
    return f"{count:,} of {preview.read:,} read ({share})"


def errors(preview: Preview) -> list[DataError]:
    """Why samples are skipped: first those that were read, then those that the source skipped."""
    errors_in_reading = [skipped.error for skipped in preview.skipped]
    return errors_in_reading + preview.skipped_at_opening


def percent(part: float, whole: float) -> str:
    """A share in percent.

    >>> percent(1, 8), percent(1, 30_000), percent(0, 0)
    ('12.5%', '<0.1%', '–')
    """
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1%"
    return f"{share:.1f}%"
