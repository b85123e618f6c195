"""Scores of short answers that forgive small errors: of reading, and of numbers."""

import math
from collections.abc import Sequence

import numpy as np


def anls(prediction: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity, of DocVQA and ST-VQA (Biten et al. 2019, equation 1,
    https://arxiv.org/abs/1905.13648): 1 less the share of characters to change; 0 from half of them on.

    Args:
        prediction: What the model wrote. Case, space around it and how wide inner space is don't count.
        references: Right answers; the nearest counts.
        threshold: The share of changes from which an answer is wrong.

    Returns:
        0..1.

    >>> anls("Jon Smith", ["John Smith", "J. Smith"]), anls("cat", ["dog"]), anls("", [""])
    (0.9, 0.0, 1.0)
    """
    return max((_similarity(prediction, reference, threshold) for reference in references), default=0.0)


def _similarity(prediction: str, reference: str, threshold: float) -> float:
    given, right = (" ".join(text.lower().split()) for text in (prediction, reference))
    longest = max(len(given), len(right))
    fewest = longest - min(len(given), len(right))
    if fewest >= threshold * longest > 0:  # the table of a long text would take minutes
        return 0.0
    share = edit_distance(given, right) / longest if longest else 0.0
    return 1 - share if share < threshold else 0.0


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """How many characters, or words of lists, must be put in, left out or replaced (Levenshtein).

    A row of the usual table is computed at once: pages of text have millions of cells.

    >>> edit_distance("kitten", "sitting"), edit_distance("a red ball".split(), "the ball".split())
    (3, 2)
    """
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(item, len(numbers)) for item in second], np.int64)
    columns = np.arange(len(second) + 1)
    row = columns
    for place, item in enumerate(first, start=1):
        replaced = row[:-1] + (codes != numbers.get(item, -1))
        best = np.concatenate(([place], np.minimum(replaced, row[1:] + 1)))
        # What is put in comes from the left: a column may take any earlier one, and one more for each step.
        row = np.minimum.accumulate(best - columns) + columns
    return int(row[-1])


def relaxed_accuracy(prediction: str, references: Sequence[str], tolerance: float = 0.05) -> float:
    """Whether a number is within 5% of the right one, or other words are the same but for case (ChartQA,
    Masry et al. 2022, section 5.1, https://arxiv.org/abs/2203.10244).

    Args:
        prediction: What the model wrote. `12%` is the number 0.12, as in the code that published results of
            Pix2Struct, Qwen-VL and lmms-eval come from.
        references: Right answers; any of them counts.
        tolerance: How far off a number may be, as a share of the right one. Zero must be met exactly, as a
            text.

    Returns:
        0 or 1.

    >>> [relaxed_accuracy(answer, ["200"]) for answer in ("210", "189", "200.0", "two hundred")]
    [1.0, 0.0, 1.0, 0.0]
    """
    return max((_is_near(prediction, reference, tolerance) for reference in references), default=0.0)


def _is_near(prediction: str, reference: str, tolerance: float) -> float:
    given, right = _number(prediction), _number(reference)
    if given is not None and right:
        return float(abs(given - right) <= tolerance * abs(right))
    return float(prediction.strip().lower() == reference.strip().lower())


def _number(text: str) -> float | None:
    text = text.strip()
    scale = 100 if text.endswith("%") else 1
    try:
        value = float(text.rstrip("%")) / scale
    except ValueError:
        return None
    return value if math.isfinite(value) else None
