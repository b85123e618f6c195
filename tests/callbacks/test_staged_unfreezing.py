"""Training in stages is a hand-written loop that freezes, unfreezes and sets each learning rate itself."""

import csv
import gc
import math
import weakref
from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.selectors import SelectorError, select_parameters
from lightning_vlm_callbacks.staged_unfreezing.entries import depth_factors
from lightning_vlm_callbacks.staged_unfreezing.scaled_rates import ScaledRates
from lightning_vlm_callbacks.staged_unfreezing.stages import (
    PLANS,
    plan,
    trains_since,
    warm_up,
)
from lightning_vlm_callbacks.stop_rule import Rule, Standing, decide
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler as schedulers

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn

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


class Save(Callback):
    """A checkpoint after each batch; where a validation or the end of an epoch follows, after that."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches == 0:
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


def stub(module, **options):
    """All of a Trainer that the callback looks at."""
    given = {
        "global_step": 0,
        "max_steps": 100,
        "max_epochs": -1,
        "num_training_batches": 7,
        "callbacks": [],
        "loggers": [],
        "optimizers": [torch.optim.SGD(module.parameters(), lr=0.1)],
        "strategy": SimpleNamespace(broadcast=lambda value: value),
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "sanity_checking": False,
        "enable_validation": True,
    }
    return SimpleNamespace(**{**given, **options})


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


# Two processes


def without_batch_statistics(model):
    """Each process would have its own."""
    model.stem[1] = nn.GroupNorm(1, 8)
    for block in model.blocks:
        block.norm = nn.GroupNorm(1, 8)
    return model


class Wrappers(Callback):
    """How many DDP wrappers and reducers there were, and how many are left of them."""

    def __init__(self):
        self.seen, self.left = [], []

    def on_train_batch_end(self, trainer, *_):
        wrapper = trainer.strategy.model
        if not self.seen or self.seen[-1][0]() is not wrapper:
            self.seen.append((weakref.ref(wrapper), weakref.ref(wrapper.reducer)))
        self.left.append(sum(ref() is not None for pair in self.seen for ref in pair))


def test_two_processes_are_one(classifier, digits, make_trainer, on_two_ranks):
    """Replicas are bit-equal after each batch, and equal one process with both batches, to rounding."""

    def on_rank():
        gc.disable()  # the old reducer must go at once
        model, record, wrappers = without_batch_statistics(classifier(dropout=0.0)), Record(), Wrappers()
        model.optimizer = sgd
        trainer = make_trainer(
            devices=2,
            strategy="ddp",  # which never looks for unused parameters
            accumulate_grad_batches=2,
            max_steps=8,
            callbacks=[StagedUnfreezing(STAGES, **OPTIONS), record, wrappers],
            limit_val_batches=0,
        )
        trainer.fit(model, digits.Digits(stateful=False))
        trained = [one.requires_grad for one in model.parameters()]
        left, wrapped = max(wrappers.left), len(wrappers.seen)
        return {
            "batches": record.batches,
            "states": record.states,
            "left": left,
            "wrapped": wrapped,
            "trained": trained,
        }

    first, second = on_two_ranks(on_rank)
    for one, other in zip(first["states"], second["states"], strict=True):
        assert_same(one, other)
    assert (first["wrapped"], first["left"]) == (3, 2)
    assert all(first["trained"])  # as the module had it
    batches = [
        [torch.cat(pair) for pair in zip(*both, strict=True)]
        for both in zip(first["batches"], second["batches"], strict=True)
    ]
    model = without_batch_statistics(classifier(dropout=0.0))
    expected = by_hand(model, batches, sgd, lambda o: schedulers.ConstantLR(o, 1.0), accumulate=2)
    for state, wanted in zip(first["states"], expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)
    assert len({state["head.weight"].sum().item() for state in first["states"]}) == 1 + 3 + 2


def test_processes_that_see_different_metrics_agree(classifier, digits, make_trainer, on_two_ranks):
    class Unsynced(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("score", 1.0 if trainer.global_rank == 0 else 1.0 - 0.1 * trainer.global_step)

    def on_rank():
        stages = [
            {"at": 0, "train": {"head": 1.0}},
            {"on_plateau": {"monitor": "score", "patience": 2, "from_best": True}, "train": {"blocks": 1.0}},
        ]
        model, staged, record = classifier(), StagedUnfreezing(stages, "step"), Record()
        trainer = make_trainer(
            devices=2,
            strategy="ddp",
            val_check_interval=1,
            max_steps=6,
            callbacks=[Unsynced(), staged, record],
        )
        trainer.fit(model, digits.Digits(stateful=False))
        weights = [torch.cat([s[n].flatten() for n, _ in model.named_parameters()]) for s in record.states]
        return {"begun": staged.state_dict()["begun"], "weights": weights}

    first, second = on_two_ranks(on_rank)
    assert first["begun"] == second["begun"] == {1: 3}
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other)


# Modes, ends, a second time


def test_modes_hold_after_validation(classifier, digits, make_trainer):
    """Also if the module itself puts all in train mode then."""
    model, seen = classifier(), set()
    kind = type("Own", (type(model),), {"on_validation_model_train": lambda self: self.train()})
    model.__class__ = kind

    class Look(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            on = [name for name, module in pl_module.named_modules() if module.training]
            seen.add((trainer.global_step >= 3, *on))

    stages = [{"at": 0, "train": {"head": 1.0}}, {"at": 3, "train": {"blocks[0]": 1.0}}]
    trainer = make_trainer(
        callbacks=[StagedUnfreezing(stages, "step"), Look()], val_check_interval=1, max_steps=5
    )
    trainer.fit(model, digits.Digits())
    assert seen == {
        (False, "", "head"),
        (True, "", "blocks", "blocks.0", "blocks.0.conv", "blocks.0.norm", "blocks.0.drop"),
    }


def test_modes_are_given_back(classifier, digits, make_trainer):
    """A fit without stages that follows must not train a part whose dropout is off."""
    model = classifier()
    model.stem.eval()
    before = {name: module.training for name, module in model.named_modules()}
    trainer = make_trainer(max_steps=1, callbacks=[StagedUnfreezing([{"at": 0, "train": {"head": 1.0}}])])
    trainer.fit(model, digits.Digits())
    assert {name: module.training for name, module in model.named_modules()} == before
    assert before["blocks.0"]
    assert not before["stem.1"]


def test_a_second_fit_begins_anew(classifier, digits, make_trainer):
    """With the same callback and the same module, weights put back, also after an error inside a step."""
    staged, model = StagedUnfreezing(PLATEAUS, "step", warmup_steps=2), classifier(dropout=0.0)
    start = state_of(model)

    class Stop(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 6 and attempt == 0:
                raise KeyError("stop")

    ends = []
    for attempt in range(3):
        model.load_state_dict(start)
        torch.manual_seed(0)
        trainer = make_trainer(
            callbacks=[Scripted(SCORES), staged, Stop()], val_check_interval=1, max_steps=9
        )
        if attempt == 0:
            with pytest.raises(KeyError, match="stop"):
                trainer.fit(model, digits.Digits(size=64))
        else:
            trainer.fit(model, digits.Digits(size=64))
            ends.append(state_of(model))
        assert all(one.requires_grad for one in model.parameters())
        (group,) = trainer.optimizers[0].param_groups
        assert group["lr"] == 1e-2
        assert len(group["params"]) == len(list(model.parameters()))
        assert not trainer.optimizers[0]._optimizer_step_pre_hooks
        assert not trainer.optimizers[0]._optimizer_step_post_hooks
    assert_same(ends[0], ends[1])
    trainer = make_trainer(
        callbacks=[Scripted(dict(enumerate(range(9)))), staged], val_check_interval=1, max_steps=8
    )
    trainer.fit(model, digits.Digits(size=64))
    assert staged.state_dict()["begun"] == {}


def test_optimizers_that_write_into_their_groups():
    class Counting(torch.optim.SGD):
        key = "steps"

        def step(self, closure=None):
            for group in self.param_groups:
                group[self.key] = group.get(self.key, 0) + (1 if self.key == "steps" else group["lr"])

    class Summing(Counting):
        key = "lr_sum"

    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for kind in (Counting, Summing):
        optimizer = kind(weights, lr=1.0)
        group = optimizer.param_groups[0]
        rates = ScaledRates([optimizer], lambda one: 0.5 if one is weights[0] else 1.0)
        if kind is Counting:
            optimizer.step()
            optimizer.step()
            assert optimizer.param_groups[0]["steps"] == 2
        else:
            with pytest.raises(
                MisconfigurationException, match="found optimizer Summing, which keeps 'lr_sum'"
            ):
                optimizer.step()
        assert optimizer.param_groups == [group]
        rates.remove()


# What is said


def test_table_lines_and_scalar(classifier, digits, make_trainer, tmp_path, caplog):
    later = {"on_plateau": {"monitor": "val/loss"}, "train": {"blocks": 0.1, "blocks[1]": 1.0}}
    stages = [*STAGES[:2], later]
    logger = CSVLogger(tmp_path)
    model = classifier(schedule=lambda o: schedulers.LambdaLR(o, lambda step: (1 + step) / 5))
    trainer = make_trainer(
        callbacks=[StagedUnfreezing(stages, **OPTIONS)], logger=logger, max_steps=4, log_every_n_steps=100
    )
    with caplog.at_level("INFO"):
        trainer.fit(model, digits.Digits())
    table = next(text for text in caplog.messages if "what trains when" in text)
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["0", "0", "head", "1", "330", "0.01"],
        ["1", "3", "blocks[-1:]", "0.5", "600", "0.0025"],
        ["1", "3", "head.bias", "0.25", "10", "0.0025"],
        ["2", "val/loss", "at", "rest", "blocks", "0.1", "1,200", "0.000125", "to", "0.0005"],
        ["2", "val/loss", "at", "rest", "blocks[1]", "1", "600", "0.0025"],
        ["never", "(all", "else)", "96"],
    ]
    assert [text for text in caplog.messages if text.startswith("StagedUnfreezing: step")] == [
        "StagedUnfreezing: step 0, stage 0 of 2 trains head ×1",
        "StagedUnfreezing: step 3, stage 1 of 2 trains blocks[-1:] ×0.5, head.bias ×0.25",
    ]
    rows = csv.DictReader((tmp_path / "lightning_logs/version_0/metrics.csv").open())
    logged = [(row["step"], float(row["staged_unfreezing/stage"])) for row in rows]
    assert logged == [("0", 0.0), ("3", 1.0)]


GOOD = {"at": 0, "train": {"head": 1.0}}
MISTAKES = {
    "no such plan": ("medicl", {}, "'medicl'; expected one of .*; did you mean 'medical'"),
    "plan in steps": ("medical", {"unit": "step"}, "unit: found 'step'; expected 'fraction'"),
    "unit": ([GOOD], {"unit": "epochs"}, "did you mean 'epoch'"),
    "none": ([], {}, "stages: found \\[\\]"),
    "not a stage": (["head"], {}, "stages\\[0\\]: found 'head'"),
    "key": ([{**GOOD, "trian": {}}], {}, "stages\\[0\\]: found 'trian'; .* did you mean 'train'"),
    "no begin": ([{"train": {"head": 1.0}}], {}, "expected one of 'at' and 'on_plateau'"),
    "two begins": ([{**GOOD, "on_plateau": {"monitor": "x"}}], {}, "expected one of 'at' and"),
    "late": ([{**GOOD, "at": 0.1}], {}, "the first stage begins with the run"),
    "order": ([GOOD, {**GOOD, "at": 0.5}, {**GOOD, "at": 0.5}], {}, "stages\\[2\\]: at: found 0.5; .* 0.5"),
    "percent": ([GOOD, {**GOOD, "at": 50}], {}, "a number in \\[0, 1\\)"),
    "half a step": ([GOOD, {**GOOD, "at": 0.5}], {"unit": "step"}, "a whole number >= 0"),
    "at nan": ([GOOD, {**GOOD, "at": math.nan}], {"unit": "epoch"}, "found nan; expected a number >= 0"),
    "at none": ([{**GOOD, "at": None}], {}, "found None"),
    "nothing trains": ([{**GOOD, "train": {}}], {}, "expected selector: scale"),
    "scale": ([{**GOOD, "train": {"head": 0}}], {}, "train\\['head'\\]: found 0; expected a number > 0"),
    "scale text": ([{**GOOD, "train": {"head": "1"}}], {}, "found '1'"),
    "warm-up": ([GOOD], {"warmup_steps": -1}, "warmup_steps: found -1"),
    "decay": ([GOOD], {"layer_decay": 1.5}, "layer_decay: found 1.5"),
}
PLATEAU_MISTAKES = {
    "monitor": ({}, "at least 'monitor'"),
    "key": ({"patiense": 3}, "found 'patiense'; .* did you mean 'patience'"),
    "mode": ({"mode": "less"}, "mode: found 'less'; expected min or max"),
    "patience": ({"patience": 0}, "patience: found 0"),
    "min_delta": ({"min_delta": -0.1}, "min_delta: found -0.1"),
    "from_best": ({"from_best": "yes"}, "from_best: found 'yes'"),
}


@pytest.mark.parametrize(("stages", "options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(stages, options, message):
    with pytest.raises(MisconfigurationException, match=message):
        StagedUnfreezing(stages, **options)


@pytest.mark.parametrize(("keys", "message"), PLATEAU_MISTAKES.values(), ids=PLATEAU_MISTAKES)
def test_plateau_mistakes(keys, message):
    keys = {"monitor": "loss", **keys} if keys else keys
    with pytest.raises(MisconfigurationException, match=message):
        StagedUnfreezing([GOOD, {"on_plateau": keys, "train": {"head": 1.0}}])


def frozen_stem(model):
    model.stem.requires_grad_(False)


def quantised_stem(model):
    model.stem[0].weight = nn.Parameter(torch.zeros(8, 1, 3, 3, dtype=torch.int8), requires_grad=False)
    model.stem[0].bias = None


def without_head(model):
    model.configure_optimizers = lambda: torch.optim.SGD(model.blocks.parameters(), lr=0.1)


def lbfgs(model):
    model.configure_optimizers = lambda: torch.optim.LBFGS(model.parameters())


def manual(model):
    model.automatic_optimization = False


ENTRIES = {
    "frozen": (frozen_stem, {}, {"stem": 1.0}, "'stem', whose 4 parameters are frozen by the module"),
    "quantised": (quantised_stem, {}, {"stem[0]": 1.0}, "quantised and can't train; give it LoRA"),
    "no optimizer": (without_head, {}, {"head": 1.0}, "found head.weight and 1 more in no optimizer"),
    "optimizer": (lbfgs, {}, {"head": 1.0}, "found optimizer LBFGS"),
    "no end": (None, {"max_epochs": -1}, {"head": 1.0}, "the run has no end"),
    "manual": (manual, {"max_epochs": 1}, {"head": 1.0}, "found manual optimization"),
}


@pytest.mark.parametrize(("change", "options", "train", "message"), ENTRIES.values(), ids=ENTRIES)
def test_what_shows_when_the_fit_begins(classifier, digits, make_trainer, change, options, train, message):
    model = classifier()
    if change:
        change(model)
    trainer = make_trainer(callbacks=[StagedUnfreezing([{"at": 0, "train": train}])], **options)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(model, digits.Digits())


def test_another_callback_that_freezes_is_refused(classifier, digits, make_trainer):
    trainer = make_trainer(callbacks=[StagedUnfreezing([GOOD]), BackboneFinetuning()])
    with pytest.raises(MisconfigurationException, match="found BackboneFinetuning, which freezes"):
        trainer.fit(classifier(), digits.Digits())


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
def test_other_strategies_are_refused(strategy):
    trainer = SimpleNamespace(strategy=object.__new__(strategy))
    staged = StagedUnfreezing([GOOD])
    with pytest.raises(
        MisconfigurationException, match=f"trainer.strategy {strategy.__name__}, .*choose ddp"
    ):
        staged.setup(trainer, None, "fit")
    staged.setup(trainer, None, "validate")


# When, and by how much


def test_epochs_and_fractions_are_the_loops_own(classifier, digits, make_trainer):
    """Windows of 2 batches in the first epoch, then of 1: epochs of 4 and 8 steps."""
    seen = {}

    class Look(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.blocks[0].conv.bias.requires_grad:
                seen.setdefault(self.name, (trainer.current_epoch, batch_idx, trainer.global_step))

    for unit, at, steps in (
        ("epoch", 1, -1),
        ("epoch", 1.5, -1),
        ("fraction", 0.25, -1),
        ("fraction", 0.7, -1),
        ("fraction", 0.5, 6),
    ):
        stages = [GOOD, {"at": at, "train": {"blocks": 1.0}}]
        windows = GradientAccumulationScheduler({0: 2, 1: 1})
        trainer = make_trainer(
            max_epochs=2,
            max_steps=steps,
            callbacks=[StagedUnfreezing(stages, unit), windows, Look(at)],
            limit_val_batches=0,
        )
        trainer.fit(classifier(), digits.Digits())
    # Of 12 steps, 9 / 12 >= 0.7 > 8 / 12; or of 6, where they end the run.
    assert seen == {1: (1, 0, 4), 1.5: (1, 4, 8), 0.25: (0, 6, 3), 0.7: (1, 5, 9), 0.5: (0, 6, 3)}


def test_warm_up_begins_with_each_unbroken_run_of_stages():
    """Against a walk over all steps; stage 2 of the starts is overtaken, stage 4 never comes."""
    starts, in_stage = [0, 4, 9, 9, None], [True, False, True, True, True]
    since = None
    for step in range(15):
        stage = 0 if step < 4 else 1 if step < 9 else 3
        if not in_stage[stage]:
            since = step + 1
            continue
        assert trains_since(step, starts, in_stage) == since
        factor = 1.0 if since is None else min(1.0, (step - since + 1) / 3)
        assert warm_up(step, since, 3) == factor


def test_layer_decay_is_a_closed_form():
    model = nn.ModuleDict(
        {
            "embed": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "encoder": nn.ModuleDict(
                {"layers": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(4))}
            ),
            "norm": nn.LayerNorm(2),
            "mlp": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        }
    )
    named = dict(model.named_parameters())
    powers = {"embed": 5, "encoder.layers.0": 4, "encoder.layers.1": 3, "encoder.layers.2": 2}
    powers |= {"encoder.layers.3": 1, "norm": 0, "mlp": 0}
    for some in (named, {name: named[name] for name in named if "layers.2" in name or "layers.3" in name}):
        for name, factor in depth_factors(model, some, 0.9).items():
            (power,) = (power for place, power in powers.items() if name.startswith(place + "."))
            assert factor == pytest.approx(0.9**power, abs=1e-15)
    assert set(depth_factors(model, {"norm.weight": model["norm"].weight}, 0.9).values()) == {1.0}


def test_what_counts_as_better():
    rule = Rule("max", min_delta=0.5)

    def is_better(value, best):
        return decide(rule, Standing(best), value).is_best

    assert [is_better(value, 1.0) for value in (1.6, 1.5, 0.0, math.nan)] == [True, False, False, False]
    assert [is_better(value, None) for value in (-5.0, math.nan)] == [True, False]


# Command line


@pytest.mark.parametrize("name", ["lightning_vlm_callbacks.StagedUnfreezing", "StagedUnfreezing"])
def test_from_yaml(digits, tmp_path, name):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
trainer:
  accelerator: cpu
  devices: 1
  default_root_dir: {tmp_path}/run
  max_steps: 4
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: {name}
      init_args:
        stages:
          - at: 0.0
            train: {{head: 1.0}}
          - at: 0.5
            train: {{head: 1.0, "blocks[-2:]": 0.1}}
          - on_plateau: {{monitor: val/loss, patience: 9}}
            train: {{"*": 1.0}}
        warmup_steps: 2
        layer_decay: 0.9
model:
  schedule: {{class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {{gamma: 0.9}}}}
"""
    )
    before = state_of(digits.Classifier())
    cli = digits.main(["fit", "--config", str(config)])
    state = cli.trainer.optimizers[0].state
    held = {
        name.split(".")[0] + name.split(".")[1][:1] for name, p in cli.model.named_parameters() if p in state
    }
    assert held == {"headw", "headb", "blocks1", "blocks2"}
    assert before.keys() == state_of(cli.model).keys()
    other = ["--trainer.default_root_dir", str(tmp_path / "other"), "--trainer.callbacks.stages=medical"]
    with pytest.raises(SelectorError, match="projector"):
        digits.main(["fit", "--config", str(config), *other])


# Vision-language models

FULL = dict.fromkeys(("vision", "projector", "language", "head"), "full")


@pytest.fixture(scope="module")
def vlm(model_folder):
    def make(family="smolvlm", adapt=FULL, **options):
        torch.manual_seed(0)
        if family == "llava":
            options["chat_template"] = "plain"
        made = VLMModule(str(model_folder(family)), adapt=adapt, schedule=None, **options)
        made.configure_model()
        return made

    return make


def drawn():
    return VLMDataModule(train=Drawn("train", size=16), batch_size=2)


# By the first letters of the parts; V is the last half of the tower's layers, v the rest of the tower.
TRAINS = {
    "projector-then-language": {0: "p", 20: "plh"},
    "vision-last-layers": {0: "plh", 50: "plhV", 80: "plhvV"},
    "medical": {0: "p", 30: "pV", 70: "pvV"},
    "qwen-vl-3-stage": {0: "pvV", 65: "plhvV", 90: "plh"},
}


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
@pytest.mark.parametrize("name", TRAINS)
def test_ready_plans(vlm, family, name):
    module = vlm(family)
    blocks = module.get_submodule(module.parts["vision.layers"][0])
    while len(blocks) < 8:  # the tiny ones have two
        blocks.append(deepcopy(blocks[0]))
    last = set(select_parameters(module, "vision.layers[50%:]"))
    parts = {part[0]: set(select_parameters(module, part)) for part in FULL}
    parts |= {"v": parts["v"] - last, "V": last}
    trainer = stub(module)
    staged = StagedUnfreezing(name)
    staged.on_train_start(trainer, module)
    for step, letters in TRAINS[name].items():
        for trainer.global_step in (max(step - 1, 0), step):
            staged.on_train_batch_start(trainer, module, None, 0)
        wanted = set().union(*(parts[letter] for letter in letters))
        assert {name for name, one in module.named_parameters() if one.requires_grad} == wanted
    assert StagedUnfreezing(plan(name)).stages == staged.stages
    plan(name)[0]["train"].clear()
    assert plan(name) == PLANS[name]


def test_no_graph_is_kept_for_a_frozen_tower(vlm, make_trainer):
    module, seen, sizes = vlm(), [], []
    tower = module.get_submodule(module.parts["vision"][0])
    tower.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state.requires_grad))
    training_step = module.training_step

    def counted(batch, batch_idx):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = training_step(batch, batch_idx)
        sizes.append(sum(kept.values()))
        return loss

    module.training_step = counted
    before = {name: one.detach().clone() for name, one in module.named_parameters() if "vision" in name}
    now = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            names = [
                name for name, one in before.items() if not torch.equal(pl_module.get_parameter(name), one)
            ]
            now.append(sorted({"layers.1." in name for name in names}))

    others = {"projector": 1.0, "language": 1.0, "head": 1.0}
    stages = [
        {"at": 0, "train": others},
        {"at": 2, "train": {**others, "vision.layers[-1:]": 0.1}},
        {"at": 4, "train": {**others, "vision": 0.1}},
    ]
    data = VLMDataModule(train=Drawn("train", size=2), batch_size=2)  # the same batch six times
    trainer = make_trainer(
        max_epochs=6,
        callbacks=[StagedUnfreezing(stages, "step"), Look()],
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    later_stages_checked = [True]  # a forward of the first batch that keeps no activations
    assert seen == [False, *later_stages_checked, False] + [True] * 4
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3] < sizes[4] == sizes[5]
    assert now == [[], [], [True], [True], [False, True], [False, True]]


def test_lora_that_begins_later_is_trained_and_resumed(vlm, make_trainer, tmp_path):
    """B is zero at first; a plan by name leaves the head out, which LoRA has frozen."""

    def fit(*callbacks, **options):
        module = vlm(adapt={"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.1}}})
        start = state_of(module)
        staged = StagedUnfreezing("projector-then-language", warmup_steps=2)
        trainer = make_trainer(
            max_epochs=1, accumulate_grad_batches=2, callbacks=[staged, *callbacks], limit_val_batches=0
        )
        data = VLMDataModule(train=Drawn("train", size=20), batch_size=2)
        seed_everything(1, verbose=False)
        trainer.fit(module, data, weights_only=True, **options)
        return end_of(trainer, module), start

    whole, start = fit(Save(tmp_path))  # 5 steps; LoRA from the second on
    moved = {name for name, value in start.items() if not torch.equal(value, whole[name])}
    ever = {name for name in start if "lora_" in name or "connector" in name}
    assert moved == ever
    for step in (1, 3):
        assert_same(fit(ckpt_path=tmp_path / f"{step}.ckpt")[0], whole)


def test_a_vlm_in_two_processes(vlm, make_trainer, on_two_ranks):
    def on_rank():
        stages = [
            {"at": 0, "train": {"projector": 1.0}},
            {"at": 2, "train": {"language": 1.0, "vision": 0.1}},
        ]
        module, data = vlm("smolvlm"), VLMDataModule(train=Drawn("train", size=16), batch_size=2)
        record = Record()
        trainer = make_trainer(
            max_steps=4,
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
            callbacks=[StagedUnfreezing(stages, "step"), record],
            limit_val_batches=0,
        )
        trainer.fit(module, data)
        return record.states

    first, second = on_two_ranks(on_rank)
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)
    moved = [
        {name.split(".")[2] for name in one if not torch.equal(one[name], two[name])}
        for one, two in pairwise(first)
    ]
    assert moved == [{"connector"}, {"text_model", "vision_model"}, {"text_model", "vision_model"}]


def test_a_written_head_that_lora_has_frozen_is_an_error(vlm, make_trainer):
    module = vlm(adapt={"projector": "full", "language": {"lora": {"r": 2}}})
    trainer = make_trainer(callbacks=[StagedUnfreezing(plan("projector-then-language"))], max_steps=9)
    with pytest.raises(MisconfigurationException, match=r"stages\[1\]: found 'head'.*frozen by the module"):
        trainer.fit(module, drawn())
