"""When a score is judged, and what of it never comes in a run."""

import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_vlm_callbacks.run_length import (
    epochs_ahead,
    has_validation_data,
    validations_ahead,
    why_no_validation,
)
from lightning_vlm_callbacks.runs import LoggedMetric
from lightning_vlm_callbacks.stop_rule import Decision, Rule, Standing, decide

__all__ = ["Judge"]


class Judge:
    """Looks at the monitored metric after each validation, or at the end of each epoch if none comes.

    Args:
        monitor: The metric; None judges nothing.
        rule: What is better, and how long to wait for it.
        strict: Whether a metric that isn't there is an error.
    """

    def __init__(self, monitor: str | None, rule: Rule, strict: bool) -> None:
        self.monitor = monitor
        self.rule = rule
        self.strict = strict
        self.standing = Standing()
        self.score: float | None = None
        """The last score that was judged."""
        self.due = False
        """Whether there was a validation since the last judgement."""
        self._metric = LoggedMetric()
        self._validates = True
        self._needed = strict
        """Whether it is an error if the metric isn't there."""
        self._judged = False

    def on_train_start(self, trainer: Trainer) -> None:
        """Find out when the metric is judged, and say what of the rule can't happen in this run."""
        self.due = self._judged = False
        if self.monitor is None:
            return
        ahead = validations_ahead(trainer)
        self._validates = ahead > 0
        # A run of a few steps, which tries a config, ends before its first validation: the name isn't wrong.
        self._needed = self.strict and (self._validates or not has_validation_data(trainer))
        if self._validates:
            self._warn_of_long_patience("after a validation", ahead)
            return
        rank_zero_info(
            f"EarlyStopCheckpoint: no validation comes in this run ({why_no_validation(trainer)}), so "
            f"{self.monitor} is judged at the end of each epoch"
        )
        ahead = max(epochs_ahead(trainer), 1)
        self._warn_of_long_patience("at an epoch's end", ahead)

    def _warn_of_long_patience(self, moment: str, ahead: float) -> None:
        patience = self.rule.patience
        if patience is None:
            return
        needed = max(patience, 1) - self.standing.waited
        if self.standing.best is None:  # the first score is the best
            needed += 1
        if ahead < needed:
            count = "once" if ahead == 1 else f"{ahead:g} times"
            rank_zero_warn(
                f"EarlyStopCheckpoint: patience {patience} stops nothing in this run, where {self.monitor} "
                f"is judged {count} {moment}; set a smaller one"
            )

    def on_train_epoch_end(self, trainer: Trainer) -> Decision | None:
        """Judge what hasn't been judged inside the epoch."""
        return self.judge(trainer) if self.due or not self._validates else None

    def judge(self, trainer: Trainer) -> Decision | None:
        """The decision, the same on all ranks; None if there is nothing to judge.

        Raises:
            MisconfigurationException: The metric isn't there, `strict`, and the run is long enough for it.
        """
        self.due = False
        if self.monitor is None:
            return None
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is None and self._needed:
            there = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found no metric {self.monitor!r} after step {trainer.global_step}; "
                f"there are: {there}"
            )
        if metric is None or not self._metric.is_new(metric):
            return None
        self._judged = True
        self.score = _mean_over_ranks(trainer, metric)
        decision = decide(self.rule, self.standing, self.score)
        self.standing = decision.standing
        return decision

    def add_old(self, trainer: Trainer) -> None:
        """What is shown now was judged before the run was saved."""
        self._metric.is_new(trainer.callback_metrics.get(self.monitor or ""))

    def on_train_end(self, trainer: Trainer) -> None:
        """Say so if the metric never came."""
        if self.monitor is not None and not self._needed and not self._judged:
            there = ", ".join(sorted(trainer.callback_metrics)) or "none"
            rank_zero_warn(
                f"EarlyStopCheckpoint: {self.monitor} was never logged where it is judged, so there is no "
                f"best checkpoint; there are: {there}"
            )

    def resume(self, state: dict[str, Any]) -> bool:
        """Take over the standing of an earlier run.

        Returns:
            Whether it was judged by the same metric, so that its best score counts.
        """
        if (state["monitor"], state["mode"]) == (self.monitor, self.rule.mode):
            self.standing = Standing(state["best"], state["waited"])
            return True
        if state["best"] is not None and not math.isnan(state["best"]):
            rank_zero_warn(
                f"EarlyStopCheckpoint: the checkpoint was judged by {state['monitor']} ({state['mode']}), "
                f"now it is {self.monitor} ({self.rule.mode}); the best score so far, {state['best']:g}, "
                "can't be compared and is forgotten"
            )
        return False


def _mean_over_ranks(trainer: Trainer, metric: Tensor) -> float:
    score = metric.detach().float()
    if trainer.world_size > 1:  # the metric may have been logged without sync_dist
        score = trainer.strategy.reduce(score.clone().to(trainer.strategy.root_device), reduce_op="mean")
    return float(score)
