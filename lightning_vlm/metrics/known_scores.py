"""The table of scores: each by its name, as sums that add up over answers and ranks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from lightning_vlm.data.parts import Point
from lightning_vlm.errors import UserError
from lightning_vlm.metrics import boxes, corpus, short_answers, yes_no
from lightning_vlm.metrics.choices import choice_accuracy
from lightning_vlm.metrics.detection import detection_counts, mean_average_precision
from lightning_vlm.metrics.masks import overlap
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.text import exact_match, token_f1
from lightning_vlm.metrics.vqa import FEWEST, vqa_accuracy
from lightning_vlm.nearest import did_you_mean

Sums: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """A score of answers.

    Args:
        name: What it is called in a config, a log and a table.
        sums: What it needs of one answer, to be added up; None where it doesn't apply.
        value: The score of what was added up; None where it has none.
        needs: What an answer must have for it.
    """

    name: str
    sums: Callable[[Prediction], Sums | None]
    value: Callable[[Sums], float | None]
    needs: str

    def of(self, answer: Prediction) -> float | None:
        """The score of one answer alone; None where it doesn't apply."""
        sums = self.sums(answer)
        return None if sums is None else self.value(sums)


def find_score(name: str) -> Score:
    """A score by its name; also `acc@` with any IoU, and `pck@` with any share of a picture.

    Raises:
        UserError: There is none of that name; the message has the nearest one.

    >>> find_score("acc@0.9").name
    'acc@0.9'
    >>> find_score("ansl")
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: model.scores: there is no score ansl; did you mean anls?
    """
    if name in SCORES:
        return SCORES[name]
    found = _threshold(name)
    if found is None:
        raise UserError(f"model.scores: there is no score {name}{did_you_mean(name, SCORES)}")
    kind, threshold = found
    return _WITH_THRESHOLD[kind](threshold, name)


def is_score(name: str) -> bool:
    """Whether a score of answers has this name."""
    return name in SCORES or _threshold(name) is not None


def place_of(name: str) -> tuple[int, str]:
    """Where a score stands in a table: in the order of `SCORES`, with further IoUs behind `acc@0.8`."""
    known = list(SCORES)
    if name in SCORES:
        return known.index(name), ""
    return known.index("acc@0.8" if name.startswith("acc") else "pck@0.05"), name


def _threshold(name: str) -> tuple[str, float] | None:
    """`acc` or `pck`, and the number behind the @; None where it is another name."""
    kind, _, number = str(name).partition("@")
    try:
        threshold = float(number)
    except ValueError:
        return None
    return (kind, threshold) if kind in _WITH_THRESHOLD and 0 < threshold <= 1 else None


def _ratio(sums: Sums) -> float | None:
    return sums["sum"] / sums["count"] if sums["count"] else None


def _mean(name: str, function: Callable[[Prediction], float | None], needs: str = "a right answer") -> Score:
    """A score that is the mean of those of each answer."""

    def sums(answer: Prediction) -> Sums | None:
        value = function(answer)
        return None if value is None else {"sum": value, "count": 1.0}

    return Score(name, sums, _ratio, needs)


def _of_reference(name: str, function: Callable[[str, str], float]) -> Score:
    """A mean score of an answer and the one that is learned."""

    def one(answer: Prediction) -> float | None:
        return None if answer.reference is None else function(answer.text, answer.reference)

    return _mean(name, one)


def _of_references(
    name: str, function: Callable[[str, Sequence[str]], float | None], needs: str = "a right answer"
) -> Score:
    """A mean score of an answer and all right ones."""

    def one(answer: Prediction) -> float | None:
        return function(answer.text, answer.right_answers) if answer.right_answers else None

    return _mean(name, one, needs)


def _of_corpus(name: str, score: corpus.CorpusScore) -> Score:
    def sums(answer: Prediction) -> Sums | None:
        return score.sums(answer.text, answer.right_answers) if answer.right_answers else None

    return Score(name, sums, score.value, "a right answer")


def _errors(words: bool, answer: Prediction) -> Sums | None:
    return corpus.error_sums(words, answer.text, answer.right_answers) if answer.right_answers else None


def _yes_no(answer: Prediction) -> Sums | None:
    return None if answer.reference is None else yes_no.yes_no_counts(answer.text, answer.reference)


def _choice(answer: Prediction) -> float | None:
    if answer.reference is None:
        return None
    return choice_accuracy(answer.text, answer.reference, answer.prompt)


_BOXES = "boxes, points or regions in the right answer"
_AREAS = "boxes or regions in the right answer"


def _of_boxes(name: str, function: Callable[[Prediction], float | None], needs: str = _AREAS) -> Score:
    """A mean score over answers that should have boxes."""
    return _mean(name, lambda answer: function(answer) if _has_boxes(answer) else None, needs)


def _has_boxes(answer: Prediction) -> bool:
    return answer.found is not None and bool(answer.right)


def _items(answer: Prediction) -> boxes.Items:
    return answer.found.items if answer.found is not None else ()


def _accuracy_at(threshold: float, name: str) -> Score:
    return _of_boxes(name, lambda answer: _of_areas(answer, partial(boxes.accuracy_at, threshold)))


def _points_within(share: float, name: str) -> Score:
    def value(answer: Prediction) -> float | None:
        if not all(isinstance(target, Point) for target in answer.right):
            return None
        return boxes.points_within(share, _items(answer), answer.right, answer.views)

    return _of_boxes(name, value, "points in the right answer")


_WITH_THRESHOLD = {"acc": _accuracy_at, "pck": _points_within}
"""The scores whose names end with a number."""


def _of_areas(answer: Prediction, function: Callable[[boxes.Items, boxes.Items], float]) -> float | None:
    """A score of boxes and regions; None where the right answer is one of points, which have no area."""
    if all(isinstance(target, Point) for target in answer.right):
        return None
    return function(_items(answer), answer.right)


def _faulty(answer: Prediction) -> float:
    return float(answer.found is not None and bool(answer.found.faults))


def _hallucinated(answer: Prediction) -> float | None:
    is_negative = answer.reference is not None and answer.found is not None and not answer.right
    return float(bool(_items(answer))) if is_negative else None


def _detections(answer: Prediction) -> Sums | None:
    is_known = answer.reference is not None and answer.found is not None
    return detection_counts(_items(answer), answer.right) if is_known else None


def _duplicates(answer: Prediction) -> Sums | None:
    items = _items(answer)
    return {"sum": boxes.duplicates(items), "count": len(items)} if items else None


def _masks(answer: Prediction) -> Sums | None:
    if not _has_boxes(answer) or all(isinstance(target, Point) for target in answer.right):
        return None
    both, either = overlap(_items(answer), answer.right, answer.views)
    return {"sum": both, "count": either}


def _mask_iou(answer: Prediction) -> float | None:
    sums = _masks(answer)
    return None if sums is None else _ratio(sums)


_ALL = (
    _of_reference("exact_match", exact_match),
    _of_reference("token_f1", token_f1),
    _of_references("vqa_accuracy", vqa_accuracy, f"{FEWEST} right answers or more (`answers`)"),
    _of_references("anls", short_answers.anls),
    _of_references("relaxed_accuracy", short_answers.relaxed_accuracy),
    _mean("mcq", _choice, "a letter that is right"),
    Score("yes_no", _yes_no, yes_no.accuracy, "a right answer of yes or no"),
    Score("yes_no_f1", _yes_no, yes_no.f1, "a right answer of yes"),
    Score("yes_share", _yes_no, yes_no.yes_share, "a right answer of yes or no"),
    Score("false_yes", _yes_no, yes_no.false_yes, "a right answer of no"),
    _of_corpus("bleu", corpus.BLEU),
    _of_corpus("chrf", corpus.CHRF),
    *(_of_references(kind, partial(corpus.rouge, kind)) for kind in ("rouge1", "rouge2", "rougeL")),
    Score("cer", partial(_errors, False), _ratio, "a right answer"),
    Score("wer", partial(_errors, True), _ratio, "a right answer"),
    _accuracy_at(0.5, "acc@0.5"),
    _accuracy_at(0.75, "acc@0.75"),
    _accuracy_at(0.8, "acc@0.8"),
    _of_boxes("miou", lambda answer: _of_areas(answer, boxes.mean_iou)),
    Score("map", _detections, mean_average_precision, _AREAS),
    _of_boxes("pointing", lambda answer: boxes.pointing_accuracy(_items(answer), answer.right)),
    _points_within(0.05, "pck@0.05"),
    _of_boxes("parse_failures", _faulty, _BOXES),
    _of_boxes("missed", lambda answer: float(not _items(answer)), _BOXES),
    _mean("hallucination", _hallucinated, "a right answer without boxes"),
    Score("duplicates", _duplicates, _ratio, "boxes in what the model answers"),
    _of_boxes("mask_miou", _mask_iou),
    Score("mask_ciou", _masks, _ratio, _AREAS),
)
SCORES = {score.name: score for score in _ALL}
"""Every score of answers by its name, in the order of the table's columns."""
DEFAULT = ("exact_match", "token_f1", "acc@0.5", "miou", "pck@0.05", "parse_failures")
"""The scores of a task for which none is chosen; those of boxes only come where answers should have some."""
