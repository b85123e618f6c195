"""The samples whose answers changed between two models: won and lost."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_vlm.compare.answered import Answered, Key
from lightning_vlm.compare.measures import Measure
from lightning_vlm.metrics.known_scores import DEFAULT
from lightning_vlm.metrics.score_choice import ScoreChoice

_OF_BOXES = ("acc@0.5", "pck@0.05")


class Change(NamedTuple):
    """A sample that another model answers better or worse.

    Args:
        key: The sample.
        measure: The score that says so.
        before: Of the one model.
        after: Of the other.
        gain: How much better the other is, in the score.
    """

    key: Key
    measure: str
    before: float
    after: float
    gain: float


class Changes(NamedTuple):
    """What changed between two models on a set.

    Args:
        measure: The score that decides, or several of them where tasks differ.
        won: The samples that the other model answers better, those that gain most first.
        lost: Those that it answers worse.
        compared: How many samples have that score.
        chance: How often as unequal a division of won and lost, or more so, would come of a fair coin.
    """

    measure: str
    won: list[Change]
    lost: list[Change]
    compared: int
    chance: float | None


def main_measures(
    measures: Mapping[str, Sequence[Measure]], choice: ScoreChoice, answers: Sequence[Answered]
) -> dict[str, Measure]:
    """The score of each task that says which answers are better.

    It is the first one that was chosen and that some answer has. Where none was chosen, it is that of boxes
    where answers should have some.

    Args:
        measures: Of each task.
        choice: Which scores each task has.
        answers: Of one model.
    """
    found: dict[str, Measure] = {}
    for answer in answers:
        task = answer.prediction.task
        if task in found:
            continue
        names = [score.name for score in choice.of(task)]
        if names == list(DEFAULT):
            names.sort(key=lambda name: name not in _OF_BOXES)
        by_name = {measure.name: measure for measure in measures[task] if measure.direction}
        for name in names:
            if name in by_name and by_name[name].of(answer) is not None:
                found[task] = by_name[name]
                break
    return found


def changes(
    keys: Sequence[Key],
    before: Sequence[Answered],
    after: Sequence[Answered],
    main: Mapping[str, Measure],
) -> Changes | None:
    """What changed between two models.

    Args:
        keys: The samples.
        before: Their answers of the one model.
        after: Those of the other.
        main: As from `main_measures`.

    Returns:
        None where no sample has a score.
    """
    from scipy.stats import binomtest  # it takes long to import

    found = []
    compared = 0
    for key, one, other in zip(keys, before, after, strict=True):
        measure = main.get(one.prediction.task)
        values = (None, None) if measure is None else (measure.of(one), measure.of(other))
        if measure is None or values[0] is None or values[1] is None:
            continue
        compared += 1
        gain = (values[1] - values[0]) * measure.direction
        if gain:
            found.append(Change(key, measure.name, values[0], values[1], gain))
    if not compared:
        return None
    found.sort(key=lambda change: -abs(change.gain))
    won = [change for change in found if change.gain > 0]
    lost = [change for change in found if change.gain < 0]
    chance = float(binomtest(len(won), len(found)).pvalue) if found else None
    names = ", ".join(dict.fromkeys(measure.name for measure in main.values()))
    return Changes(names, won, lost, compared, chance)
