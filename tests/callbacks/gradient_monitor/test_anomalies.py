"""What happens at an unusual gradient: a warning, a skipped step, or the end."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradientMonitor
from torch import nn
from torch.utils.data import DataLoader

from tests.callbacks.gradient_monitor.support import (
    STATS,
    Drop,
    Plain,
    Poison,
    assert_equal,
    optimizer_state,
    warnings_of,
    weights_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:GradientMonitor")


def test_warnings_come_once_and_are_counted(fit, recwarn):
    poison = Poison("head.bias", dict.fromkeys(range(2, 12), 1e5))
    trainer = fit([poison, GradientMonitor()], steps=12, gradient_clip_val=0.1)
    assert trainer.global_step == 12
    first, last = warnings_of(recwarn)
    assert "step 2: exploding in 'head': norm" in first
    assert "exploding in 'all'" in first
    assert "stem" not in first + last
    assert "exploding in 'head' 10× (steps 2 to 11)" in last


def test_exploding_against_what_is_usual(fit, recwarn):
    """Far below the absolute limit."""
    fit([Poison("head.bias", {27: 30.0}), GradientMonitor(max_norm=1e9)], steps=30)
    assert "step 27: exploding in 'head'" in warnings_of(recwarn)[0]
    assert len(warnings_of(recwarn)) == 2


def test_what_is_usual_begins_anew_with_what_trains(fit, recwarn):
    """The same jump as above, but as another part begins to train it is no surprise."""

    class Unfreeze(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.stem.requires_grad_(trainer.global_step >= 27)

    fit([Unfreeze(), Poison("head.bias", {27: 30.0}), GradientMonitor(max_norm=1e9)], steps=30)
    assert not warnings_of(recwarn)


@pytest.mark.parametrize("kind", ["vanishing", "dead"])
@pytest.mark.parametrize("on_anomaly", ["warn", "skip", "stop"])
def test_vanishing_and_dead_only_warn(fit, recwarn, dead_after, kind, on_anomaly):
    dead_after(3)
    factor = {"vanishing": 1e-9, "dead": 0.0}[kind]
    poisons = [Poison(f"stem.{name}", dict.fromkeys(range(20), factor)) for name in ("weight", "bias")]
    trainer = fit([*poisons, GradientMonitor(on_anomaly=on_anomaly)])
    assert trainer.global_step == 6
    first, last = warnings_of(recwarn)
    assert f"step {0 if kind == 'vanishing' else 2}: {kind} in 'stem'" in first
    assert f"{kind} in 'stem' {6 if kind == 'vanishing' else 4}×" in last


def test_no_gradient_at_all(fit, recwarn, dead_after):
    """Neither of a group, which is dead, nor of any."""

    class Unused(Plain):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.empty = nn.Parameter(torch.empty(0))

        def forward(self, pictures):
            return super().forward(pictures) + self.empty.sum()

    dead_after(3)
    logger = fit([GradientMonitor()], Unused()).logger
    assert "dead in 'unused': no gradient" in warnings_of(recwarn)[0]
    assert logger.of("unused") == []
    dead_after(1)
    logger = fit([Drop(2), GradientMonitor()], Unused()).logger
    assert [step for step, _ in logger.of("all")] == [0, 1, 3, 4, 5]
    assert any("dead in 'all': no gradient" in one for one in warnings_of(recwarn))


@pytest.mark.parametrize("factor", [1e5, math.nan, math.inf])
def test_stop(fit, recwarn, factor):
    """After the step that follows, at which it is read."""
    trainer = fit([Poison("head.bias", {2: factor}), GradientMonitor(on_anomaly="stop")])
    assert trainer.global_step == 4
    assert f"step 2: {'exploding' if factor == 1e5 else 'nan'} in 'head'" in warnings_of(recwarn)[0]


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
}


class States(Callback):
    """Weights and the optimizer's state after each step."""

    def __init__(self):
        self.all = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.all.append([*weights_of(pl_module), *optimizer_state(trainer).values()])


@pytest.mark.parametrize(("name", "every_n_steps"), [("AdamW", 1), ("Adam, fused", 4), ("SGD", 3)])
def test_a_skipped_step_changes_nothing(fit, recwarn, name, every_n_steps):
    """Bit for bit; and the run is the one in which gradients were taken away by hand."""
    optimizer, seen, by_hand = OPTIMIZERS[name], States(), States()
    poisons = [Poison("stem.weight", {2: math.nan, 4: 1e5}), Poison("head.bias", {5: -math.inf})]
    watched = GradientMonitor(on_anomaly="skip", every_n_steps=every_n_steps)
    trainer = fit([*poisons, watched, seen], Plain(optimizer), 8, gradient_clip_val=0.5)
    fit([Drop(2, 4, 5), by_hand], Plain(optimizer), 8, gradient_clip_val=0.5)
    for skipped in (2, 4, 5):
        assert_equal(seen.all[skipped], seen.all[skipped - 1])
    assert not torch.equal(seen.all[3][0], seen.all[2][0])
    for one, other in zip(seen.all, by_hand.all, strict=True):
        assert_equal(one, other)
    logged = dict(trainer.logger.of("all"))
    assert list(logged) == [step for step in range(8) if (step + 1) % every_n_steps == 0]
    assert {name for step in logged for name in logged[step] if step in (2, 4, 5)} <= STATS - {
        "clipped_norm",
        "update_ratio",
    }
    warnings = warnings_of(recwarn)
    assert "step 2: nan in 'stem'" in warnings[0]
    assert "step 4: exploding in 'stem'" in warnings[1]
    assert "nan in 'all' 2× (steps 2 to 5)" in warnings[-1]
    assert math.isfinite(watched._watch.usual["all"].mean)


@pytest.mark.parametrize("where", ["loss", "after the ranks agreed"])
def test_skip_on_two_ranks(fit, samples, on_two_ranks, where):
    """What only one rank sees, all leave out."""

    class OnOne(Callback):
        def on_after_backward(self, trainer, pl_module):
            if where != "loss" and trainer.global_rank == 1 and trainer.global_step == 2:
                pl_module.head.bias.grad.fill_(math.nan)

    class NaNLoss(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            bad = where == "loss" and self.global_rank == 1 and self.global_step == 2
            return loss * math.nan if bad else loss

    def run():
        seen = States()
        watched = GradientMonitor(on_anomaly="skip")
        fit(
            [OnOne(), watched, seen],
            NaNLoss(OPTIMIZERS["AdamW"]),
            5,
            DataLoader(samples, 4),
            devices=2,
            strategy="ddp",
            gradient_clip_val=0.5,
        )
        return seen.all

    first, second = on_two_ranks(run)
    for one, other in zip(first, second, strict=True):
        assert_equal(one, other)
    assert_equal(first[2], first[1])
    assert not torch.equal(first[3][0], first[2][0])
    assert all(torch.isfinite(one).all() for one in first[4])


def test_stop_on_two_ranks(fit, samples, on_two_ranks):
    class OnOne(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_rank == 1 and trainer.global_step == 2:
                pl_module.head.bias.grad.fill_(1e5)

    def run():
        callbacks = [OnOne(), GradientMonitor(on_anomaly="stop")]
        return fit(callbacks, steps=9, data=DataLoader(samples, 4), devices=2, strategy="ddp").global_step

    assert on_two_ranks(run) == [4, 4]


def test_twenty_skips_in_a_row_are_an_error(fit, tmp_path):
    poison = Poison("head.bias", dict.fromkeys(range(3, 99), 1e5))
    with pytest.raises(
        MisconfigurationException, match=r"skipped 20 steps in a row.*raise max_norm \(100.0\)"
    ):
        fit([poison, GradientMonitor(on_anomaly="skip")], steps=99)
    poison.factors.pop(15)
    assert fit([poison, GradientMonitor(on_anomaly="skip")], steps=30).global_step == 30
