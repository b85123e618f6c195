"""One decision makes a checkpoint the best and ends the patience, as Lightning's two callbacks decide."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import EarlyStopCheckpoint
from lightning_vlm_callbacks.stop_rule import Rule, Standing, decide

from tests.support.checkpoints import Scores


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.integers(-8, 8).map(lambda one: one / 4), min_size=1, max_size=20),
    patience=st.integers(1, 4),
    delta=st.sampled_from([0.0, 0.25, 1.0]),
    mode=st.sampled_from(["min", "max"]),
)
def test_decides_as_lightning_does(scores, patience, delta, mode):
    """On finite scores: the same best score, the same stop."""
    theirs = EarlyStopping("x", min_delta=delta, patience=patience, mode=mode)
    standing = Standing()
    for score in scores:
        should_stop, _ = theirs._evaluate_stopping_criteria(torch.tensor(score))
        decision = decide(Rule(mode, delta, patience), standing, score)
        standing = decision.standing
        assert decision.should_stop == should_stop
        assert standing.best == theirs.best_score.item()
        assert decision.is_best == (standing.waited == 0)
        if should_stop:
            assert f"the last is {score:g}" in decision.reason
            return


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers(bad):
    """A best score of NaN would stay the best for ever."""
    standing = Standing()
    for score, best in ((bad, None), (3.0, 3.0), (bad, 3.0), (2.0, 2.0)):
        decision = decide(Rule(patience=2), standing, score)
        standing = decision.standing
        assert standing.best == best
        assert decision.is_best == (score == best)
        assert not decision.should_stop


def test_stops_and_goes_on(run, tmp_path):
    """The wait is counted on when resumed, and the patience given then is the one in force."""
    scores, options = [3, 2, 2, 2, 2, 2, 2, 2], {"monitor": "score", "keep_periodic": None}
    options["trainer"] = {"max_epochs": 8}
    _, trainer, keep = run("whole", callbacks=[Scores(scores)], patience=3, **options)
    assert trainer.current_epoch == 5
    assert trainer.should_stop
    assert keep.best_model_score == 2
    file = tmp_path / "whole/step-00000024.ckpt"  # has waited for one
    for patience, epochs in ((3, 5), (2, 4), (None, 8)):
        _, trainer, _ = run(
            f"patience-{patience}", callbacks=[Scores(scores)], patience=patience, ckpt_path=file, **options
        )
        assert trainer.current_epoch == epochs


def test_a_metric_that_is_missing(run):
    with pytest.raises(MisconfigurationException, match=r"found no metric 'val/los'.*val/accuracy, val/loss"):
        run(monitor="val/los")


def test_a_run_that_ends_before_its_first_validation(run):
    """As one of a few steps, which tries a config, does."""
    with pytest.warns(UserWarning, match="val/loss was never logged where it is judged"):
        _, trainer, keep = run("short", monitor="val/loss", patience=None, trainer={"max_steps": 1})
    assert trainer.global_step == 1
    assert keep.best_model_score is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mean"}, "found mode 'mean'; expected 'min' or 'max'"),
        ({"monitor": None, "patience": 2}, "found patience 2 without a metric"),
        ({"every_n_steps": 0}, "found every_n_steps 0; expected at least 1"),
        ({"keep_periodic": -1}, "found keep_periodic -1"),
        ({"dirpath": "s3://bucket/run"}, "expected a folder on a local or shared disk"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        EarlyStopCheckpoint(**options)


def test_what_counts_as_better():
    rule = Rule("max", min_delta=0.5)

    def is_better(value, best):
        return decide(rule, Standing(best), value).is_best

    assert [is_better(value, 1.0) for value in (1.6, 1.5, 0.0, math.nan)] == [True, False, False, False]
    assert [is_better(value, None) for value in (-5.0, math.nan)] == [True, False]
