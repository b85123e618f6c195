"""Which scores each task has: `model.scores`."""

from collections.abc import Mapping, Sequence

from lightning_vlm.errors import UserError
from lightning_vlm.metrics.known_scores import DEFAULT, Score, find_score
from lightning_vlm.metrics.prediction import Prediction


class ScoreChoice:
    """Which scores each task has.

    Args:
        given: Task -> names of scores, or the names for all tasks. A task that isn't named has those of
            `DEFAULT`, as all have with None.

    Raises:
        UserError: There is no such score, or this is neither of the two.

    >>> choice = ScoreChoice({"ocr": ["anls"]})
    >>> choice.values(Prediction("a", "ocr", "cat", "Cat"))
    {'anls': 1.0}
    >>> choice.values(Prediction("b", "vqa", "cat", "Cat"))
    {'exact_match': 0.0, 'token_f1': 0.0}
    """

    def __init__(self, given: Mapping[str, Sequence[str]] | Sequence[str] | None = None) -> None:
        self._default = tuple(map(find_score, DEFAULT))
        self._tasks: dict[str, tuple[Score, ...]] = {}
        self.is_given = given is not None
        """Whether scores were chosen."""
        if isinstance(given, Mapping):
            self._tasks = {task: _scores(names, f"model.scores.{task}") for task, names in given.items()}
        elif given is not None:
            self._default = _scores(given, "model.scores")
        self._is_list = self.is_given and not self._tasks

    def __str__(self) -> str:
        """The names of the scores of all tasks, and of those that have others.

        >>> print(ScoreChoice({"ocr": ["anls", "cer"]}))
        exact_match token_f1 ...; ocr: anls cer
        """
        tasks = [f"{task}: {_names(scores)}" for task, scores in self._tasks.items()]
        return "; ".join([_names(self._default), *tasks])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that scores were chosen for one by one."""
        return tuple(self._tasks)

    def of(self, task: str) -> tuple[Score, ...]:
        """The scores of a task."""
        return self._tasks.get(task, self._default)

    def values(self, answer: Prediction) -> dict[str, float]:
        """The scores of one answer alone: those that apply to it."""
        found = {score.name: score.of(answer) for score in self.of(answer.task)}
        return {name: value for name, value in found.items() if value is not None}

    def without_value(self, scores: Mapping[str, float], tasks: Sequence[str]) -> list[str]:
        """What to say of chosen scores that no answer has had, a text for each.

        Args:
            scores: What has a value, as `Scores.compute` names it.
            tasks: Those of which there were answers.
        """
        texts = []
        if self._is_list:
            for score in self._default:
                if score.name not in scores:
                    texts.append(f"{score.name} (it needs {score.needs})")
        for task, chosen in self._tasks.items():
            for score in chosen:
                name = score.name if [task] == list(tasks) else f"{score.name}/{task}"
                if name not in scores:
                    why = f"it needs {score.needs}" if task in tasks else f"no answer is of the task {task}"
                    texts.append(f"{score.name}/{task} ({why})")
        return texts


def _names(scores: Sequence[Score]) -> str:
    return " ".join(score.name for score in scores)


def _scores(names: Sequence[str], key: str) -> tuple[Score, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{key}: found {names!r}; expected a list of scores, such as [anls, cer]")
    return tuple(find_score(name) for name in dict.fromkeys(names))
