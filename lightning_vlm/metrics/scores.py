"""What validation and test report, in all and for each task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.kinds import Kind
from lightning_vlm.metrics.known_scores import find_score, place_of
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.metrics.tally import TaskTally

LEVEL = "level="
"""What stands before a level where else a task does."""


class Scores:
    """Sums over batches; `compute` turns them into scores over all ranks."""

    def __init__(self, choice: ScoreChoice | None = None) -> None:
        """Begin without any.

        Args:
            choice: Which scores of answers each task has.
        """
        self._choice = choice or ScoreChoice()
        self._tasks = TaskTally()
        self._levels = TaskTally()

    def reset(self) -> None:
        """Forget all scores."""
        self._tasks.reset()
        self._levels.reset()

    def add_losses(self, batch: Batch, targets: Targets, token_losses: Tensor) -> Tensor | None:
        """Add the losses of a batch.

        Args:
            batch: The batch.
            targets: Its targets.
            token_losses: Tensor of shape [targets], one loss each, before its weight.

        Returns:
            Tensor of shape [samples, 5]: of each sample the weighted loss, the weight, the loss without
            weights, its targets and its tokens; None of a batch without samples.
        """
        if not batch.tasks:
            return None
        samples = batch.samples.flatten()
        ones = torch.ones_like(token_losses)
        columns = torch.stack((token_losses * targets.weights, targets.weights, token_losses, ones), dim=1)
        sums = columns.new_zeros(len(batch.tasks), 4).index_add_(0, samples[targets.positions], columns)
        are_tokens = (batch.kinds != Kind.PAD).flatten().to(sums.dtype)
        tokens = sums.new_zeros(len(batch.tasks)).index_add_(0, samples, are_tokens)
        rows = torch.cat((sums, tokens[:, None]), dim=1)
        _add_rows(self._tasks, batch.tasks, rows)
        _add_rows(self._levels, batch.levels, rows)
        return rows

    def add_answers(self, answers: Sequence[Prediction]) -> None:
        """Add generated answers."""
        for answer in answers:
            self._tasks.update(answer.task, answered=1)
            for score in self._choice.of(answer.task):
                sums = score.sums(answer)
                if sums is None:
                    continue
                named = {f"{score.name} {name}": value for name, value in sums.items()}
                self._tasks.update(answer.task, **named)
                if answer.level is not None:
                    self._levels.update(answer.level, **named)

    def state(self) -> dict[str, dict[str, dict[str, float]]]:
        """The sums of this process, for `add`."""
        return {"tasks": self._tasks.state(), "levels": self._levels.state()}

    def add(self, state: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Add what `state` of others gave, such as of a run that this one continues."""
        for tally, sums in ((self._tasks, state["tasks"]), (self._levels, state["levels"])):
            for name, values in sums.items():
                tally.update(name, **values)

    def compute(self) -> dict[str, float]:
        """Scores over all ranks: `loss`, `perplexity`, `supervised`, and those of answers that are chosen.

        With several tasks also `loss/vqa` and so on, and `loss/level=object` and so on where samples have a
        level. Perplexity is exp of the summed loss over the number of supervised tokens, weights left aside;
        `supervised` is their share of all tokens.
        """
        return self.report().scores

    def report(self) -> "Report":
        """As `compute`, with what has no value."""
        tasks = self._tasks.totals()
        levels = self._levels.totals()
        names = {name for sums in tasks.values() for name in sums}
        together = {name: sum(sums.get(name, 0.0) for sums in tasks.values()) for name in names}
        scores = _scores(together)
        if len(tasks) > 1:
            for task, sums in tasks.items():
                scores |= {f"{name}/{task}": value for name, value in _scores(sums).items()}
        for level, sums in levels.items():
            scores |= {f"{name}/{LEVEL}{level}": value for name, value in _scores(sums).items()}
        answered = [task for task, sums in tasks.items() if sums.get("answered")]
        if not answered:
            return Report(scores, [])
        return Report(scores, self._choice.without_value(scores, answered))


class Report(NamedTuple):
    """What a validation or a test has found.

    Args:
        scores: The scores by name.
        without_value: Of chosen scores that have no value, the name and why.
    """

    scores: dict[str, float]
    without_value: list[str]


def _add_rows(tally: TaskTally, names: Sequence[str | None], rows: Tensor) -> None:
    """Add up what samples of the same name have, in rows of five columns."""
    for name in sorted({name for name in names if name is not None}):
        of_name = [place for place, other in enumerate(names) if other == name]
        index = torch.tensor(of_name).to(rows.device, non_blocking=True)
        loss, weight, nll, count, tokens = rows[index].sum(0).unbind()
        tally.update(name, loss=loss, weight=weight, nll=nll, count=count, tokens=tokens)


def _scores(sums: dict[str, float]) -> dict[str, float]:
    scores = {}
    if sums.get("weight"):
        scores["loss"] = sums["loss"] / sums["weight"]
        nll = torch.tensor(sums["nll"] / sums["count"], dtype=torch.float64)
        scores["perplexity"] = float(nll.exp())  # math.exp raises where this is infinite
        scores["supervised"] = sums["count"] / sums["tokens"]
    of_answers: dict[str, dict[str, float]] = {}
    for key, value in sums.items():
        name, _, part = key.partition(" ")
        if part:
            of_answers.setdefault(name, {})[part] = value
    for name in sorted(of_answers, key=place_of):
        found = find_score(name).value(of_answers[name])
        if found is not None:
            scores[name] = found
    return scores
