"""Stages that begin when a metric stalls."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.staged_unfreezing.plateau import copied_to_cpu
from torch import nn
from torch.nn import functional

from tests.support.staged import (
    PLATEAUS,
    SCORES,
    Record,
    Save,
    Scripted,
    assert_same,
    end_of,
    state_of,
    stub,
)


def test_after_a_plateau_from_the_best_weights(classifier, digits, make_trainer, tmp_path):
    def fit(*callbacks, **options):
        model = classifier(dropout=0.0)
        staged = StagedUnfreezing(PLATEAUS, "step", warmup_steps=2)
        scripted, record = Scripted(SCORES), Record()
        trainer = make_trainer(
            callbacks=[scripted, staged, record, *callbacks], val_check_interval=1, max_steps=10
        )
        trainer.fit(model, digits.Digits(size=64), weights_only=True, **options)
        return end_of(trainer, model), scripted.best, record, staged.state_dict()

    whole, at, record, state = fit(Save(tmp_path))
    # NaN, best at 2 and 3, 4 and 5 no better: the next stage begins at 5, from the weights of 3.
    # There 6 is the first to look at, 7 better, 8 isn't: the last begins at 8.
    assert state == {"begun": {1: 5, 2: 8}, "watched": None, "best": None, "waits": 0, "weights": {}}
    batches, after = record.batches, record.states
    for name, best in at[3].items():
        if name.startswith("head"):  # trained before, frozen then: as it was at the best
            for step in (5, 6, 7):
                assert torch.equal(after[step][name], best), name
            assert not torch.equal(at[5][name], best)
        if name.startswith("stem"):
            assert torch.equal(whole[name], best), name
    # The first batch on the best weights, by hand: no momentum, and what is new there at half the rate.
    hand = classifier(dropout=0.0)
    hand.load_state_dict(at[3])
    for name, module in hand.named_modules():
        module.training = name.startswith("blocks.")
    hand.requires_grad_(False)
    hand.blocks.requires_grad_(True)
    groups = [{"params": hand.blocks[2].parameters(), "lr": 0.5e-2}, {"params": hand.blocks[:2].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.25e-2, weight_decay=0.1)
    functional.cross_entropy(hand(batches[5][0]), batches[5][1]).backward()
    optimizer.step()
    assert_same(after[5], state_of(hand))
    checkpoint = torch.load(tmp_path / "4.ckpt", weights_only=True)
    key = next(key for key in checkpoint["callbacks"] if "StagedUnfreezing" in key)
    assert {"head.weight", "blocks.2.norm.running_var"} <= checkpoint["callbacks"][key]["weights"].keys()
    for step in (2, 4, 5, 6, 8, 9):
        assert_same(fit(ckpt_path=tmp_path / f"{step}.ckpt")[0], whole)


def test_what_is_kept_is_what_trains_and_the_statistics_beside_it():
    root = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.BatchNorm1d(2))
    root.register_buffer("steps", torch.ones(1))
    kept = copied_to_cpu(root, set(root[0].parameters()))
    of_norm = {f"0.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    trained = {f"0.{name}" for name, _ in root[0].named_parameters()}
    assert set(kept) == {"steps", *trained, *of_norm}
    root[0][0].weight.data.zero_()
    assert kept["0.0.weight"].any()


def test_a_validation_within_a_window_leaves_the_window_whole(classifier, digits, make_trainer):
    """Validation after each batch, windows of two: decided within one, the stage begins after it."""
    scores = dict.fromkeys(range(5), 1.0)
    stages = [
        {"at": 0, "train": {"head": 1.0}},
        {"on_plateau": {"monitor": "score", "patience": 2}, "train": {"blocks": 1.0}},
    ]
    staged, seen = StagedUnfreezing(stages, "step"), []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(
                [one.grad is not None for one in (pl_module.head.bias, pl_module.blocks[0].conv.bias)]
            )

    trainer = make_trainer(
        callbacks=[Scripted(scores), staged, Look()],
        val_check_interval=1,
        accumulate_grad_batches=2,
        max_steps=4,
    )
    trainer.fit(classifier(), digits.Digits())
    assert staged.state_dict()["begun"] == {1: 2}  # the third validation is in the middle of step 1
    assert seen == [[True, False], [True, False], [False, True], [False, True]]


def test_a_validation_that_a_resumed_run_does_first(classifier, monkeypatch):
    """It is about the step before; what it decides holds for the next one. A sanity check decides nothing."""
    stages = [
        {"at": 0, "train": {"head": 1.0}},
        {"on_plateau": {"monitor": "score", "patience": 2}, "train": {"blocks": 1.0}},
        {"at": 5, "train": {"head": 1.0}},
    ]
    model = classifier()
    monkeypatch.setattr("lightning_vlm_callbacks.staged_unfreezing.callback.check_starts", lambda *_: None)
    trainer = stub(model, global_step=5, sanity_checking=True)
    staged = StagedUnfreezing(stages, "step")
    # As if another stage had been waited for, in a list of stages that was changed since.
    staged.load_state_dict({"begun": {}, "watched": 3, "best": 9.0, "waits": 7, "weights": {}})
    staged.on_train_start(trainer, model)
    for trainer.sanity_checking in (True, True, False):
        trainer.callback_metrics = {"score": torch.tensor(math.nan)}
        staged.on_validation_end(trainer, model)
        assert staged.state_dict()["begun"] == {}
    trainer.callback_metrics = {"score": torch.tensor(math.nan)}
    staged.on_validation_end(trainer, model)
    assert staged.state_dict()["begun"] == {1: 5}
    staged.on_train_batch_start(trainer, model, None, 0)
    assert [model.head.bias.requires_grad, model.blocks[0].conv.bias.requires_grad] == [True, False]


def test_a_metric_that_is_not_there(classifier, digits, make_trainer):
    stages = [{"at": 0, "train": {"head": 1}}, {"on_plateau": {"monitor": "val/los"}, "train": {"head": 2}}]
    trainer = make_trainer(callbacks=[StagedUnfreezing(stages)], max_epochs=1)
    with pytest.raises(MisconfigurationException, match=r"'val/los'; there are: train/loss, val/accuracy"):
        trainer.fit(classifier(), digits.Digits())
    trainer = make_trainer(callbacks=[StagedUnfreezing(stages)], max_epochs=1, limit_val_batches=0)
    with pytest.raises(MisconfigurationException, match="on_plateau: found no validation"):
        trainer.fit(classifier(), digits.Digits())
