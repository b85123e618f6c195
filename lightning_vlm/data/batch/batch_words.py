"""What batches there are, in words."""

from lightning_vlm.data.batch.lengths import Lengths
from lightning_vlm.data.batch.packing import Budget, Units


def alike_in_words(lengths: Lengths, units: Units, before: Units, batch_size: int) -> str:
    """Of batches of similar length.

    Args:
        lengths: Of all samples.
        units: The batches.
        before: Those that there would be otherwise.
        batch_size: Samples in a batch.
    """
    now = f"{padding(lengths, units):.1%}"
    otherwise = f"{padding(lengths, before):.1%}"
    batches = f"{len(units):,} of {batch_size} samples"
    return f"of similar length, {batches} ({now} padding instead of {otherwise})"


def filled_in_words(lengths: Lengths, units: Units, budget: Budget, packs: bool) -> str:
    """Of batches that are filled up to a budget.

    Args:
        lengths: Of all samples.
        units: The batches.
        budget: The most that a batch may hold.
        packs: Whether its samples share a row.
    """
    tokens = lengths.tokens[units.members]
    usable = int((tokens > 0).sum())
    each = usable / len(units)
    limit = f"up to {budget.tokens:,} tokens"
    if budget.patches is not None:
        limit += f" and {budget.patches:,} patches"
    if packs:
        room = len(units) * budget.tokens
        share = int(tokens.sum()) / room
        said = f"packed, {len(units):,} rows of {limit} ({share:.1%} filled, {each:.1f} samples a row)"
    else:
        share = padding(lengths, units)
        said = f"by tokens, {len(units):,} of {limit} ({share:.1%} padding, {each:.1f} samples a batch)"
    return f"{said}; data.batch_size is for evaluation only"


def padding(lengths: Lengths, units: Units) -> float:
    """The share of padding among all tokens, where batches are padded to their longest sample.

    >>> import numpy as np
    >>> lengths = Lengths(np.array([30, 10], np.int32), np.zeros(2, np.int32))
    >>> round(padding(lengths, Units.of_lists([[0, 1]])), 3)
    0.333
    """
    places = int((units.longest(lengths) * units.sizes).sum())
    tokens = int(lengths.tokens[units.members].sum())
    return 1 - tokens / max(places, 1)
