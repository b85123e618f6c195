"""What texts of answers are like: how different from each other, and how long beside what is right."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Texts(NamedTuple):
    """What the answers of a model, or what is right, are like.

    Args:
        different: The share of texts that no earlier one is the same as.
        distinct_1: The share of different words among all words (distinct-1, Li et al. 2016).
        distinct_2: The same of pairs of words that follow each other; None of both where there are none.
        empty: The share of texts without a word.
        length: Their mean length in characters.
        ratio: That length over the one of what is right; None where nothing is.
        bias: The rank correlation (Spearman) of the score and the length of answers, within each task: where
            it is far from 0, long answers score otherwise than short ones. None where all are alike.
    """

    different: float
    distinct_1: float | None
    distinct_2: float | None
    empty: float
    length: float
    ratio: float | None = None
    bias: float | None = None


def texts_of(
    texts: Sequence[str],
    right: Sequence[str | None] = (),
    scores: Sequence[float | None] = (),
    tasks: Sequence[str] = (),
) -> Texts:
    """What some texts are like.

    Args:
        texts: At least one.
        right: For each what is right, if that is known.
        scores: Of each, if there are any.
        tasks: Of each, likewise.

    >>> found = texts_of(["a cat", "a cat", "a dog", ""], ["a cat", None, "the dog", "a cat"])
    >>> found.different, found.distinct_1, found.distinct_2, found.empty, round(found.ratio, 3)
    (0.75, 0.5, 0.666..., 0.25, 0.588)
    """
    pairs = [(len(text), len(target)) for text, target in zip(texts, right, strict=False) if target]
    ratio = sum(here for here, _ in pairs) / sum(there for _, there in pairs) if pairs else None
    scored: dict[str, list[tuple[float, float]]] = {}
    for text, score, task in zip(texts, scores, tasks, strict=False):
        if score is not None:
            scored.setdefault(task, []).append((len(text), score))
    return Texts(
        different=len(set(texts)) / len(texts),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        empty=sum(not text.strip() for text in texts) / len(texts),
        length=sum(map(len, texts)) / len(texts),
        ratio=ratio,
        bias=_within_tasks(list(scored.values())),
    )


def distinct(texts: Sequence[str], size: int) -> float | None:
    """The share of different runs of so many words among all of them; None where there is none.

    >>> distinct(["red red", "red"], 1)
    0.333...
    """
    runs = []
    for text in texts:
        words = text.split()
        runs += [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return len(set(runs)) / len(runs) if runs else None


def _within_tasks(groups: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    """The mean rank correlation of groups, by how many pairs each has."""
    found = [(_rank_correlation(pairs), len(pairs)) for pairs in groups]
    known = [(one, count) for one, count in found if one is not None]
    if not known:
        return None
    return sum(one * count for one, count in known) / sum(count for _, count in known)


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    from scipy.stats import rankdata  # it takes long to import

    if len(pairs) < 3:
        return None
    lengths, scores = (rankdata(values) for values in zip(*pairs, strict=True))
    if not np.ptp(lengths) or not np.ptp(scores):
        return None
    found = float(np.corrcoef(lengths, scores)[0, 1])
    return None if math.isnan(found) else found
