"""A share of the training data that is held out, as by `data.val: 10%`: whole pictures, always the same."""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_vlm.data.conversation import Conversation, Conversations, Image, TaskTable, Text, Video
from lightning_vlm.errors import UserError

_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_MOST = 0.9
"""The most of the training data that may be held out."""


def share_of(given: Any) -> float | None:
    """The share that a split is of the training data; None for anything else, such as a path.

    >>> share_of("10%"), share_of("0.5 %"), share_of("val.jsonl")
    (0.1, 0.005, None)
    """
    match = _SHARE.fullmatch(given) if isinstance(given, str) else None
    return float(match[1]) / 100 if match else None


class Picked(Conversations):
    """Some samples of another source.

    Args:
        of: The source.
        picked: Which of its samples, in their order.
        skipped: Whether it has the samples that the source skipped.
    """

    def __init__(self, of: Conversations, picked: Sequence[int], skipped: bool = False) -> None:
        self._of = of
        self._picked = array("q", picked)
        self.skipped = of.skipped if skipped else ()
        self.only_words = of.only_words

    def __len__(self) -> int:
        return len(self._picked)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        return self._of[self._picked[index]]

    def task_table(self) -> TaskTable:
        """Of the picked samples."""
        names, of = self._of.task_table()
        return TaskTable.of_samples(names[of[index]] for index in self._picked)

    def files(self) -> Sequence[Conversations]:
        """Of the source."""
        return self._of.files()

    def names(self) -> Sequence[str] | None:
        """Of the source."""
        return self._of.names()


def held_out(train: Conversations, shares: Mapping[str, float]) -> dict[str, Conversations]:
    """Training data, and what is held out of it.

    Samples of one picture, and equal samples without pictures, are never on two sides. Which are held out
    depends on the names (or the contents) of the pictures alone, not on the order of the samples, nor on
    what else is held out. Each task
    gives its share, as far as whole pictures allow.

    Args:
        train: All samples.
        shares: The share of each further split.

    Returns:
        The sources of `train` and of each split.

    Raises:
        UserError: A share of nothing, shares of almost everything, or samples that can't be parted.

    >>> from lightning_vlm.data.drawn import Drawn
    >>> {split: len(source) for split, source in held_out(Drawn(size=100), {"val": 0.1, "test": 0.1}).items()}
    {'train': 78, 'val': 11, 'test': 11}
    """
    for split, share in shares.items():
        if not share > 0:
            raise UserError(f"data.{split}: found {share:.0%}; expected a share above 0, such as 10%")
    if sum(shares.values()) > _MOST:
        total = " and ".join(f"{share:.0%} for {split}" for split, share in shares.items())
        raise UserError(
            f"data.{next(iter(shares))}: found {total}, which leaves too little to learn from; "
            f"expected at most {_MOST:.0%} in all"
        )
    groups = sorted(_groups(train), key=lambda group: group.order)
    dealt = _dealt(groups, shares)
    sources: dict[str, Conversations] = {}
    for split in shares:
        if not dealt[split]:
            raise UserError(
                f"data.{split}: {shares[split]:.0%} of {len(train):,} samples is no whole picture; "
                "expected a larger share, or a file"
            )
        sources[split] = Picked(train, sorted(dealt[split]))
    return {"train": Picked(train, sorted(dealt["train"]), skipped=True), **sources}


class _Group:
    """Samples that share pictures."""

    def __init__(self, order: bytes, task: str) -> None:
        self.order = order
        self.task = task
        self.samples: list[int] = []


def _groups(source: Conversations) -> list[_Group]:
    roots: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while roots.setdefault(key, key) != key:
            roots[key] = roots[roots[key]]
            key = roots[key]
        return key

    firsts: list[bytes] = []
    tasks: list[str] = []
    for index in range(len(source)):
        conversation = source[index]
        first, *others = _keys(conversation)
        for other in others:
            one, two = sorted((root(first), root(other)))
            roots[two] = one  # the smallest key of a group is its root, whatever order samples come in
        firsts.append(first)
        tasks.append(conversation.task)
    groups: dict[bytes, _Group] = {}
    for index, first in enumerate(firsts):
        key = root(first)
        group = groups.setdefault(key, _Group(key, tasks[index]))
        group.samples.append(index)
    return list(groups.values())


def _keys(conversation: Conversation) -> list[bytes]:
    """What tells the pictures and videos of a sample from others; of one without any, its words."""
    media: list[Image | Video] = [*conversation.images, *conversation.videos]
    if media:
        return [_hash(_name(medium)) for medium in media]
    texts = (part.text for turn in conversation.messages for part in turn.parts if isinstance(part, Text))
    return [_hash("\n".join(texts).encode("utf-8", "surrogatepass"))]


def _name(medium: Image | Video) -> bytes:
    if medium.data is not None:
        return medium.data
    if isinstance(medium, Video) and medium.frames:
        return b"\n".join(map(_name, medium.frames))
    return str(medium.path or medium.url).encode("utf-8", "surrogateescape")


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=12).digest()


def _dealt(groups: Iterable[_Group], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """Which samples each split gets.

    A split gets groups until the next one would take it further from its share of their task. `val` gets
    those from the beginning, others those from the end, so that a split is the same without the others.
    """
    left = list(groups)
    sizes: Counter[str] = Counter()
    for group in left:
        sizes[group.task] += len(group.samples)
    dealt: dict[str, list[int]] = {}
    for split, share in shares.items():
        from_end = split != "val"
        dealt[split] = []
        given: Counter[str] = Counter()
        kept = []
        for group in reversed(left) if from_end else left:
            if given[group.task] + len(group.samples) / 2 <= share * sizes[group.task]:
                dealt[split] += group.samples
                given[group.task] += len(group.samples)
            else:
                kept.append(group)
        if not dealt[split] and len(kept) > 1:  # where tasks are small, none of them owes a whole picture
            dealt[split] += kept.pop(0).samples
        left = kept[::-1] if from_end else kept
    dealt["train"] = [sample for group in left for sample in group.samples]
    return dealt
