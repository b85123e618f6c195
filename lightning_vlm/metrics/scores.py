"""What validation and test report, in all and for each task."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.kinds import Kind
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.tally import TaskTally
from lightning_vlm.metrics.text import exact_match, token_f1


class Scores:
    """Sums over batches; `compute` turns them into scores over all ranks."""

    def __init__(self) -> None:
        self._tally = TaskTally()

    def reset(self) -> None:
        """Forget all scores."""
        self._tally.reset()

    def add_losses(self, batch: Batch, targets: Targets, token_losses: Tensor) -> None:
        """Add the losses of a batch.

        Args:
            batch: The batch.
            targets: Its targets.
            token_losses: Tensor of shape [targets], one loss each, before its weight.
        """
        if not batch.tasks:
            return
        samples = batch.samples.flatten()
        ones = torch.ones_like(token_losses)
        columns = torch.stack((token_losses * targets.weights, targets.weights, token_losses, ones), dim=1)
        sums = columns.new_zeros(len(batch.tasks), 4).index_add_(0, samples[targets.positions], columns)
        are_tokens = (batch.kinds != Kind.PAD).flatten().to(sums.dtype)
        tokens = sums.new_zeros(len(batch.tasks)).index_add_(0, samples, are_tokens)
        for task in sorted(set(batch.tasks)):
            of_task = [place for place, name in enumerate(batch.tasks) if name == task]
            index = torch.tensor(of_task).to(sums.device, non_blocking=True)
            loss, weight, nll, count = sums[index].sum(0).unbind()
            self._tally.update(
                task, loss=loss, weight=weight, nll=nll, count=count, tokens=tokens[index].sum()
            )

    def add_answers(self, answers: Sequence[Prediction]) -> None:
        """Add generated answers that have a reference."""
        for answer in answers:
            if answer.reference is not None:
                self._tally.update(
                    answer.task,
                    right=exact_match(answer.text, answer.reference),
                    f1=token_f1(answer.text, answer.reference),
                    answers=1,
                )

    def compute(self) -> dict[str, float]:
        """Scores over all ranks: `loss`, `perplexity`, `supervised`, `exact_match`, `token_f1`.

        With several tasks also `loss/vqa` and so on. Perplexity is exp of the summed loss over the number of
        supervised tokens, weights left aside; `supervised` is their share of all tokens.
        """
        tasks = self._tally.totals()
        names = {name for sums in tasks.values() for name in sums}
        together = {name: sum(sums.get(name, 0.0) for sums in tasks.values()) for name in names}
        scores = _scores(together)
        if len(tasks) > 1:
            for task, sums in tasks.items():
                scores |= {f"{name}/{task}": value for name, value in _scores(sums).items()}
        return scores


def _scores(sums: dict[str, float]) -> dict[str, float]:
    scores = {}
    if sums.get("weight"):
        scores["loss"] = sums["loss"] / sums["weight"]
        nll = torch.tensor(sums["nll"] / sums["count"], dtype=torch.float64)
        scores["perplexity"] = float(nll.exp())  # math.exp raises where this is infinite
        scores["supervised"] = sums["count"] / sums["tokens"]
    if sums.get("answers"):
        scores["exact_match"] = sums["right"] / sums["answers"]
        scores["token_f1"] = sums["f1"] / sums["answers"]
    return scores
