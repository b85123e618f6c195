"""What tests of training in stages share: a plan, the same written out by hand, and recording callbacks."""

import math
from types import SimpleNamespace

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler as schedulers

from lightning_vlm import VLMDataModule
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


class Scripted(Callback):
    """Logs a score that depends on the step alone."""

    def __init__(self, scores):
        self.scores, self.best = scores, {}

    def on_validation_epoch_end(self, trainer, pl_module):
        self.log("score", self.scores[trainer.global_step])
        self.best[trainer.global_step] = state_of(pl_module)


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


def without_batch_statistics(model):
    """Each process would have its own."""
    model.stem[1] = nn.GroupNorm(1, 8)
    for block in model.blocks:
        block.norm = nn.GroupNorm(1, 8)
    return model


GOOD = {"at": 0, "train": {"head": 1.0}}


PLATEAU = {"monitor": "score", "mode": "max", "patience": 2, "min_delta": 0.1, "from_best": True}


PLATEAUS = [
    {"at": 0, "train": {"head": 1.0, "blocks[2]": 1.0}},
    {"on_plateau": PLATEAU, "train": {"blocks": 0.5}},
    {"on_plateau": {**PLATEAU, "from_best": False, "patience": 1}, "train": {"head": 0.5}},
]


#         best: 3, then 2 in a row not better by more than 0.1; then from 8 on, 10 is not better
SCORES = {1: math.nan, 2: 1.0, 3: 2.0, 4: 2.1, 5: math.nan, 6: 1.5, 7: 9.0, 8: 3.0, 9: 3.0, 10: 3.0}


FULL = dict.fromkeys(("vision", "projector", "language", "head"), "full")


def drawn():
    return VLMDataModule(train=Drawn("train", size=16), batch_size=2)
