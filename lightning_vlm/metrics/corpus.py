"""Scores of torchmetrics that are of many answers together, such as BLEU, as sums that add up over ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import char_error_rate, rouge_score, word_error_rate
from torchmetrics.text import CharErrorRate, CHRFScore, SacreBLEUScore, WordErrorRate


class CorpusScore:
    """A metric of torchmetrics whose states are sums.

    The metric itself isn't kept over a run, for the reason in `TaskTally`: its states are read after each
    answer, and put back when all are added up.

    Args:
        make: Makes the metric.
        nearest: How far an answer is from a right one, for a metric that takes a single right one: the
            nearest. None: it takes several.

    >>> bleu = CorpusScore(partial(SacreBLEUScore, tokenize="13a"))
    >>> sums = bleu.sums("a cat sat on the mat", ["a cat sat on a mat"])
    >>> round(bleu.value(sums), 4)
    0.5373
    """

    def __init__(
        self, make: Callable[[], Metric], nearest: Callable[[str, str], Tensor] | None = None
    ) -> None:
        self._make, self._nearest = make, nearest

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
        if self._nearest is None:
            metric.update([prediction], [list(references)])
        else:
            distance = partial(self._nearest, prediction)
            metric.update([prediction], [min(references, key=lambda right: float(distance(right)))])


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
CER = CorpusScore(CharErrorRate, char_error_rate)
"""Characters to change over characters that are right, of all answers."""
WER = CorpusScore(WordErrorRate, word_error_rate)
"""Words to change over words that are right, of all answers."""
