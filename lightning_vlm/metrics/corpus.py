"""Scores of torchmetrics that are of many answers together, such as BLEU, as sums that add up over ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score
from torchmetrics.text import CHRFScore, SacreBLEUScore

from lightning_vlm.metrics.short_answers import edit_distance


class CorpusScore:
    """A metric of torchmetrics whose states are sums.

    The metric itself isn't kept over a run, for the reason in `TaskTally`: its states are read after each
    answer, and put back when all are added up.

    Args:
        make: Makes the metric.

    >>> bleu = CorpusScore(partial(SacreBLEUScore, tokenize="13a"))
    >>> sums = bleu.sums("a cat sat on the mat", ["a cat sat on a mat"])
    >>> round(bleu.value(sums), 4)
    0.5373
    """

    def __init__(self, make: Callable[[], Metric]) -> None:
        self._make = make

    @cached_property
    def _metric(self) -> Metric:
        return self._make()

    def sums(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        """The states of the metric after one answer.

        Args:
            prediction: What the model wrote.
            references: What is right; at least one.
        """
        self._metric.reset()
        self._update(prediction, references)
        sums = {}
        for name, state in self._states():
            for place, number in enumerate(state.flatten().tolist()):
                sums[f"{name}.{place}"] = number
        return sums

    def value(self, sums: Mapping[str, float]) -> float | None:
        """The metric of states that were added up; None where it is no finite number."""
        self._metric.reset()
        self._update("", [""])  # It warns where it is computed without.
        for name, state in self._states():
            numbers = [sums.get(f"{name}.{place}", 0.0) for place in range(state.numel())]
            setattr(self._metric, name, torch.tensor(numbers, dtype=torch.float64).reshape(state.shape))
        value = float(self._metric.compute())
        return value if math.isfinite(value) else None

    def _states(self) -> list[tuple[str, Tensor]]:
        return [(name, torch.as_tensor(state)) for name, state in self._metric.metric_state.items()]

    def _update(self, prediction: str, references: Sequence[str]) -> None:
        metric: Any = self._metric
        metric.update([prediction], [list(references)])


def error_sums(words: bool, prediction: str, references: Sequence[str]) -> dict[str, float]:
    """What error rates are made of: what must be changed, and how much is right.

    It is that of torchmetrics' `CharErrorRate` and `WordErrorRate`, but fast on pages of text, and for
    several right answers, of which the one with the smallest rate counts.

    Args:
        words: Whether words are counted, or characters.
        prediction: What the model wrote.
        references: What is right; at least one.

    >>> error_sums(False, "hello duck", ["hello world"]), error_sums(True, "hello duck", ["hello world"])
    ({'sum': 5, 'count': 11}, {'sum': 1, 'count': 2})
    """
    found = []
    for reference in references:
        given, right = (prediction.split(), reference.split()) if words else (prediction, reference)
        found.append((edit_distance(given, right), len(right)))
    errors, length = min(found, key=lambda pair: pair[0] / max(pair[1], 1))
    return {"sum": errors, "count": length}


def rouge(kind: str, prediction: str, references: Sequence[str]) -> float:
    """The F-measure of ROUGE (Lin 2004, https://aclanthology.org/W04-1013), without a stemmer, as the package
    `rouge-score` has it.

    Args:
        kind: `rouge1`, `rouge2` or `rougeL`.
        prediction: What the model wrote.
        references: What is right; the one with the best F-measure counts.

    >>> round(rouge("rougeL", "a red ball", ["the red ball", "a ball"]), 4)
    0.8
    """
    found = rouge_score([prediction], [list(references)], accumulate="best", rouge_keys=kind)
    return float(found[f"{kind}_fmeasure"])


BLEU = CorpusScore(partial(SacreBLEUScore, tokenize="13a"))
"""BLEU of four-grams over all answers (Papineni et al. 2002), tokenized as SacreBLEU does (13a)."""
CHRF = CorpusScore(partial(CHRFScore, n_word_order=0))
"""chrF, its F2 of six-grams of characters over all answers (Popović 2015)."""
