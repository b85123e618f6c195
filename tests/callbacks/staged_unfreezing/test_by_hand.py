"""Training in stages is a hand-written loop that freezes, unfreezes and sets each learning rate itself."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import StagedUnfreezing
from torch import nn
from torch.optim import lr_scheduler as schedulers

from tests.support.staged import (
    OPTIONS,
    STAGES,
    Record,
    Save,
    adamw,
    assert_same,
    by_hand,
    decay,
    end_of,
    sgd,
)

CASES = {
    "AdamW": (adamw, None, {}),
    "fused, OneCycle": (
        lambda p: adamw(p, fused=True),
        lambda o: schedulers.OneCycleLR(o, max_lr=0.05, total_steps=10),
        {},
    ),
    "SGD, Lambda, accumulated": (sgd, decay, {"accumulate_grad_batches": 2}),
    "AdamW, Exponential, bf16": (
        adamw,
        lambda o: schedulers.ExponentialLR(o, 0.8),
        {"precision": "bf16-mixed"},
    ),
    "AdamW, OnPlateau": (
        adamw,
        # No loss is 10 better than another, so that it falls each epoch.
        lambda o: schedulers.ReduceLROnPlateau(o, factor=0.3, patience=0, threshold=10, threshold_mode="abs"),
        {},
    ),
}


def test_gradients_of_what_is_frozen_are_gone(classifier, digits, make_trainer):
    """Before the next forward needs the memory; and a module's own zeros would bring weight decay."""
    model, held = classifier(), []
    model.optimizer_zero_grad = lambda *args: args[-1].zero_grad(set_to_none=False)

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            held.append([name for name, one in pl_module.named_parameters() if one.grad is not None])

    stages = [{"at": 0, "train": {"head": 1.0}}, {"at": 2, "train": {"blocks[0].norm": 1.0}}]
    trainer = make_trainer(max_steps=4, callbacks=[StagedUnfreezing(stages, "step"), Look()])
    trainer.fit(model, digits.Digits())
    norm = ["blocks.0.norm.weight", "blocks.0.norm.bias"]
    assert held == [[], ["head.weight", "head.bias"], [], norm]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_by_hand(classifier, digits, make_trainer, case):
    optimizer, schedule, options = case
    per_epoch = schedule and "Plateau" in type(schedule(sgd([nn.Parameter(torch.zeros(1))]))).__name__
    model = classifier(optimizer=optimizer, schedule=schedule, interval="epoch" if per_epoch else "step")
    record = Record()
    trainer = make_trainer(max_steps=10, callbacks=[StagedUnfreezing(STAGES, **OPTIONS), record], **options)
    trainer.fit(model, digits.Digits())
    expected = by_hand(
        classifier(),
        record.batches,
        optimizer,
        schedule or (lambda o: schedulers.ConstantLR(o, 1.0)),
        options.get("accumulate_grad_batches", 1),
        amp="precision" in options,
    )
    for state, wanted in zip(record.states, expected, strict=True):
        assert_same(state, wanted)
    assert len(trainer.optimizers[0].param_groups) == 1
    if schedule is decay:  # what a scheduler sees and a logger shows is the run's own rate
        assert record.rates[-1] == [0.05 / 11]


def test_two_groups_with_a_scheduler_and_one_lambda_each(classifier, digits, make_trainer):
    """What `BaseFinetuning` can't, as it adds groups that the scheduler doesn't know."""
    model = classifier(dropout=0.0)

    def configure_optimizers():
        halves = [{"params": model.head.parameters(), "lr": 0.1}, {"params": model.blocks.parameters()}]
        optimizer = torch.optim.SGD(halves, lr=0.2)
        return [optimizer], [
            schedulers.LambdaLR(optimizer, [lambda epoch: 0.5**epoch, lambda epoch: 0.25**epoch])
        ]

    model.configure_optimizers = configure_optimizers
    seen = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rate = {one: group["lr"] for group in optimizer.param_groups for one in group["params"]}
            seen.append([rate.get(one) for one in (pl_module.head.bias, pl_module.blocks[2].conv.bias)])

    stages = [
        {"at": 0, "train": {"head": 1.0}},
        {"at": 1, "train": {"head": 0.5, "blocks": 0.1}},
    ]
    trainer = make_trainer(
        max_epochs=2, limit_train_batches=1, callbacks=[StagedUnfreezing(stages, "epoch"), Look()]
    )
    trainer.fit(model, digits.Digits())
    assert seen == [[0.1, 0.2], [0.1 * 0.5 * 0.5, 0.2 * 0.25 * 0.1]]
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.1 * 0.25, 0.2 * 0.0625]


FRACTIONS = [{**stage, "at": stage["at"] / 12} for stage in STAGES]


ENDS = {  # where a run of 12 steps, 4 an epoch, is stopped and resumed
    # Lightning trains one batch too many there after an epoch's end.
    "max_steps": ({"max_steps": 12, "max_epochs": -1}, True, (1, 3, 5, 6, 7, 11)),
    "max_epochs": ({"max_epochs": 3}, True, (1, 3, 5, 6, 7, 11)),
    # After an epoch's end StatefulDataLoader repeats the order of that epoch, so there is but one.
    "in order": ({"max_epochs": 3}, False, (3, 4, 6, 8)),
}


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_resumed_in_every_stage(classifier, digits, make_trainer, tmp_path, case):
    """Also right where stages begin, at 3 and 6."""
    end, shuffle, stops = case

    def fit(*callbacks, **options):
        model, data = classifier(dropout=0.0, optimizer=adamw, schedule=decay), digits.Digits(size=64)
        if not shuffle:
            data.train_dataloader = lambda: data.loader(data.train, data.batch_size)
        staged = StagedUnfreezing(FRACTIONS, **{**OPTIONS, "unit": "fraction"})
        trainer = make_trainer(callbacks=[staged, *callbacks], limit_val_batches=0, **end)
        trainer.fit(model, data, weights_only=True, **options)
        return end_of(trainer, model)

    whole = fit(Save(tmp_path))
    for step in stops:
        assert_same(fit(ckpt_path=tmp_path / f"{step}.ckpt"), whole)
