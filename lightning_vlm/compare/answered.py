"""What a model answered to the samples of a set."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_vlm.metrics.prediction import Prediction


class Key(NamedTuple):
    """A sample: where it came from, and its number among samples that came from there."""

    source: str
    number: int = 0


class Answered(NamedTuple):
    """What a model answered to a sample.

    Args:
        prediction: The answer.
        loss: Of the right answer: the weighted loss, the weight, the loss without weights, and the tokens.
        scores: Its scores in a file of answers.
        place: Which item of the set it is; None where that is unknown.
    """

    prediction: Prediction
    loss: tuple[float, float, float, float] | None = None
    scores: Mapping[str, float] = {}
    place: int | None = None


@dataclass
class AnswerSet:
    """The answers of a model to a set.

    Args:
        answers: In the order of the data.
        seconds: That answering took, its first batch left aside where there are more.
        timed: How many answers these are.
        tokens: How many tokens those have.
        peak: The most bytes of a GPU that were in use; None without one.
    """

    answers: dict[Key, Answered] = field(default_factory=dict)
    seconds: float = 0.0
    timed: int = 0
    tokens: int = 0
    peak: int | None = None


def with_keys(answers: Iterable[Answered]) -> dict[Key, Answered]:
    """Answers by their samples.

    >>> answers = [Answered(Prediction("a:1", "vqa", text, None)) for text in ("x", "y")]
    >>> list(with_keys(answers))
    [Key(source='a:1', number=0), Key(source='a:1', number=1)]
    """
    seen: Counter[str] = Counter()
    found = {}
    for answer in answers:
        source = answer.prediction.source
        found[Key(source, seen[source])] = answer
        seen[source] += 1
    return found


def answered_by_all(models: Sequence[Mapping[Key, Answered]]) -> list[Key]:
    """The samples that each model has answered, in the order of the first."""
    return [key for key in models[0] if all(key in answers for answers in models[1:])]
