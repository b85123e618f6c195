"""Hallucination by asking: questions of yes and no about what is there and what isn't, as in POPE.

POPE (Li et al. 2023, https://arxiv.org/abs/2305.10355) asks "Is there a dog in the image?" about things that
are there and about others that aren't, and scores accuracy, precision and recall of yes, their F1, and how
often a model says yes. Precision of yes falls with each thing that a model sees and that isn't there.
"""

import re
from collections.abc import Mapping

_WORD = re.compile(r"\b(yes|no|not)\b|n['’]t\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?\n]")


def says_yes(text: str) -> bool | None:
    """Whether an answer says yes or no; None if its first sentence says neither.

    The first of these words counts. POPE's own script takes an answer with "no" or "not" in its first
    sentence for no, and any other for yes, an empty one too; here it must be said.

    >>> [says_yes(text) for text in ("Yes, a dog.", "no", "There isn't one.", "A dog.", "Yes, but no cat.")]
    [True, False, False, None, True]
    """
    found = _WORD.search(_SENTENCE.split(text.strip(), maxsplit=1)[0])
    return None if found is None else found[0].lower() == "yes"


def yes_no_counts(prediction: str, reference: str) -> dict[str, float] | None:
    """What the scores of questions of yes and no are made of; None where the right answer is neither.

    >>> yes_no_counts("Yes.", "no")
    {'count': 1.0, 'right': 0.0, 'yes': 1.0, 'true_yes': 0.0, 'should_yes': 0.0}
    """
    should = says_yes(reference)
    if should is None:
        return None
    says = says_yes(prediction)
    return {
        "count": 1.0,
        "right": float(says == should),
        "yes": float(says is True),
        "true_yes": float(says is True and should),
        "should_yes": float(should),
    }


def accuracy(sums: Mapping[str, float]) -> float | None:
    """The share of right answers; one that says neither is wrong."""
    return _ratio(sums["right"], sums["count"])


def f1(sums: Mapping[str, float]) -> float | None:
    """F1 of yes: twice the right ones over those that are said and those that should be."""
    return _ratio(2 * sums["true_yes"], sums["yes"] + sums["should_yes"])


def yes_share(sums: Mapping[str, float]) -> float | None:
    """How often yes is said; where this is above the share of what is there, the model is too eager."""
    return _ratio(sums["yes"], sums["count"])


def false_yes(sums: Mapping[str, float]) -> float | None:
    """Of the questions about what isn't there, how many are answered by yes.

    >>> false_yes({"count": 4.0, "right": 3.0, "yes": 3.0, "true_yes": 2.0, "should_yes": 2.0})
    0.5
    """
    return _ratio(sums["yes"] - sums["true_yes"], sums["count"] - sums["should_yes"])


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
