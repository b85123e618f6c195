"""Training in stages is a hand-written loop that freezes, unfreezes and sets each learning rate itself."""

import csv
import gc
import math
import weakref
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler as schedulers

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.scaled_rates import ScaledRates
from lightning_vlm_callbacks.selectors import SelectorError
from lightning_vlm_callbacks.stages import (
    PLANS,
    Plateau,
    depth_factors,
    first_step,
    improved,
    plan,
    trains_since,
    warm_up,
)

# The weight of the head stops and comes back; its bias trains throughout; the stem never does.
STAGES = [
    {"at": 0, "train": {"head": 1.0}},
    {"at": 3, "train": {"blocks[-1:]": 0.5, "head.bias": 0.25}},
    {"at": 6, "train": {"head": 1.0, "blocks": 0.25, "blocks[1]": 1.0}},
]
OPTIONS = {"unit": "step", "warmup_steps": 2, "layer_decay": 0.5}


def scale(name, step):
    """What STAGES and OPTIONS say, written out. None: frozen. Powers of two, so that no rounding hides."""
    if name == "head.bias":
        return 0.25 if 3 <= step < 6 else 1.0
    if name == "head.weight":
        return 1.0 if step < 3 else None if step < 6 else 0.5 if step == 6 else 1.0
    if name.startswith("blocks.2."):  # the last of three layers, at half the rate of a head
        return None if step < 3 else 0.125 if step == 3 else 0.25 if step < 6 else 0.125
    if name.startswith("blocks.1."):
        return None if step < 6 else 0.125 if step == 6 else 0.25
    if name.startswith("blocks.0."):
        return None if step < 6 else 1 / 64 if step == 6 else 1 / 32
    return None


def trains(module_name, step):
    """Whether a module is in train mode."""
    if module_name.startswith("blocks."):
        return step >= 6 or (step >= 3 and module_name.startswith("blocks.2"))
    return module_name in ("", "head") or (module_name == "blocks" and step >= 3)


class Record(Callback):
    """Seeds dropout by batch, as the hand-written loop does; keeps batches and states."""

    def __init__(self):
        self.batches, self.states, self.rates, self.count = [], [], [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(self.count)
        self.count += 1
        self.batches.append(batch)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append(state_of(pl_module))
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def state_of(module):
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def by_hand(model, batches, optimizer, schedule, accumulate=1, epoch=8, amp=False):
    """The states after each batch of a plain loop with a group for each parameter."""
    named = dict(model.named_parameters())
    optimizer = optimizer([{"params": [one]} for one in named.values()])
    schedule = schedule(optimizer)
    per_epoch = isinstance(schedule, schedulers.ReduceLROnPlateau)
    states, step = [], 0
    for count, (pictures, labels) in enumerate(batches):
        for name, one in named.items():
            one.requires_grad_(scale(name, step) is not None)
            if step > 0 and scale(name, step - 1) is None:  # just unfrozen, if it trains
                optimizer.state.pop(one, None) if count % accumulate == 0 else None
        for name, module in model.named_modules():
            module.training = trains(name, step)
        torch.manual_seed(count)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = functional.cross_entropy(model(pictures), labels)
        (loss / accumulate).backward()
        if (count + 1) % accumulate == 0:
            rates = [group["lr"] for group in optimizer.param_groups]
            for name, group in zip(named, optimizer.param_groups, strict=True):
                group["lr"] = group["lr"] * (scale(name, step) or 0)
            optimizer.step()
            for rate, group in zip(rates, optimizer.param_groups, strict=True):
                group["lr"] = rate
            optimizer.zero_grad()
            step += 1
            if not per_epoch:
                schedule.step()
        if per_epoch and (count + 1) % epoch == 0:
            schedule.step(1.0)
        states.append(state_of(model))
    return states


def adamw(parameters, **options):
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1, **options)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def decay(optimizer):
    return schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step))


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
        lambda o: schedulers.ReduceLROnPlateau(
            o, factor=0.3, patience=0, threshold=10, threshold_mode="abs"
        ),
        {},
    ),
}


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


class Save(Callback):
    """A checkpoint after each batch; where a validation or the end of an epoch follows, after that."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    on_validation_end = on_train_epoch_end = on_train_batch_end


def end_of(trainer, model):
    """Weights, statistics and optimizer state."""
    state = trainer.optimizers[0].state_dict()["state"]
    kept = {f"{i}.{key}": torch.as_tensor(v) for i, one in state.items() for key, v in one.items()}
    return {**state_of(model), **kept}


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


# Metrics


class Scripted(Callback):
    """Logs a score that depends on the step alone."""

    def __init__(self, scores):
        self.scores, self.best = scores, {}

    def on_validation_epoch_end(self, trainer, pl_module):
        self.log("score", self.scores[trainer.global_step])
        self.best[trainer.global_step] = state_of(pl_module)


PLATEAU = {"monitor": "score", "mode": "max", "patience": 2, "min_delta": 0.1, "from_best": True}
PLATEAUS = [
    {"at": 0, "train": {"head": 1.0, "blocks[2]": 1.0}},
    {"on_plateau": PLATEAU, "train": {"blocks": 0.5}},
    {"on_plateau": {**PLATEAU, "from_best": False, "patience": 1}, "train": {"head": 0.5}},
]
#         best: 3, then 2 in a row not better by more than 0.1; then from 8 on, 10 is not better
SCORES = {1: math.nan, 2: 1.0, 3: 2.0, 4: 2.1, 5: math.nan, 6: 1.5, 7: 9.0, 8: 3.0, 9: 3.0, 10: 3.0}


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
    assert state["begun"] == {1: 5, 2: 8}
    assert state["weights"] == {}
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
