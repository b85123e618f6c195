"""Ranks move to where they are needed, within the budget."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks.adaptive_lora_rank.importance import Sensitivity
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import lora_layers
from torch import nn

from tests.support.lora_modules import Module, Net, assert_equal, everything, quiet


@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "activation"])
@pytest.mark.parametrize("wrap", [True, False])
def test_ranks_move_and_the_budget_is_kept(fit, importance, wrap):
    module = Module(wrap)
    keep = fit(module, quiet(importance=importance))
    assert next(i + 1 for i in range(1, 12) if keep.ranks[i] != keep.ranks[i - 1]) == 3
    assert set(keep.ranks[1].values()) == {4}
    assert len(set(keep.ranks[-1].values())) > 1
    for ranks in keep.ranks:
        assert sum(ranks.values()) == 28
        assert all(2 <= rank <= 12 and rank % 2 == 0 for rank in ranks.values())
    assert all(ranks == keep.ranks[8] for ranks in keep.ranks[8:])
    assert all(held == expected for held, expected in keep.held)
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert "on_load_checkpoint" not in vars(module)


def test_where_the_need_is_the_rank_goes(fit):
    """Only one layer has anything to learn."""

    class Lone(Net):
        def forward(self, x):
            x = self.text[1].up(x)
            self.head(torch.zeros(1, 16))
            return x[:, :8]

    for importance in ("fisher", "sensitivity"):
        module = Module(net=Lone)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("lora" in name and "text.1.up" in name)
        keep = fit(module, quiet(importance=importance, budget=32))
        last = {name.partition("model.model.")[2]: rank for name, rank in keep.ranks[-1].items()}
        assert last["text.1.up"] == 8
        assert sum(last.values()) == 32


def test_a_budget_of_parameters(fit):
    keep = fit(Module(), quiet(unit="parameters", budget=900, min_rank=0))
    costs = {name: lora.cost for name, lora in lora_layers(keep.trainer.lightning_module).items()}
    spent = sum(keep.ranks[-1][name] * cost for name, cost in costs.items())
    assert 900 - 2 * max(costs.values()) < spent <= 900


def test_less_budget_than_at_the_start_really_frees_memory(fit):
    keep = fit(Module(), quiet(budget=14))
    (before, _), (after, _) = keep.held[0], keep.held[-1]
    assert after < 0.55 * before
    assert set(keep.ranks[-1].values()) == {2}


def test_groups_keep_what_they_have(fit):
    keep = fit(Module(wrap=False), quiet(groups={"model.vision": 1.0, "*text": 3.0, "*head": 1.0}, budget=40))
    for ranks in keep.ranks[3:]:
        assert [sum(r for n, r in ranks.items() if part in n) for part in ("vision", "text", "head")] == [
            8,
            24,
            8,
        ]


def test_no_layer_gets_more_rank_than_it_is_wide(fit):
    keep = fit(Module(), quiet(budget=200, max_rank=24))
    last = {name.rpartition(".")[2]: rank for name, rank in keep.ranks[-1].items()}
    assert last["head"] == 8
    assert last["up"] == 16


def test_what_is_frozen_keeps_its_rank_and_weights(fit):
    module = Module()
    frozen = [lora for name, lora in lora_layers(module).items() if "vision" in name]
    for lora in frozen:
        nn.init.normal_(lora.b)
        lora.a.requires_grad_(False)
        lora.b.requires_grad_(False)
    before = [(lora.a.clone(), lora.b.clone()) for lora in frozen]
    keep = fit(module, quiet())
    for lora, (a, b) in zip(frozen, before, strict=True):
        assert torch.equal(lora.a, a)
        assert torch.equal(lora.b, b)
    assert sum(keep.ranks[-1].values()) == 28
    assert len(set(keep.ranks[-1].values())) > 1


def test_equal_ranks_are_plain_lora_bit_for_bit(fit):
    plain, module = Module(), Module()
    expected = fit(plain)
    for importance in ("fisher", "sensitivity", "activation"):
        module = Module()
        keep = fit(module, quiet(min_rank=4, max_rank=4, multiple_of=4, importance=importance))
        assert_equal(everything(keep.trainer, module), everything(expected.trainer, plain))


def test_growing_is_seen_by_nothing_but_the_next_step(fit):
    """The loss of the step after a change is that of the run without, where only growth was asked for."""
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            losses.append(outputs["loss"].item())

    fit(Module(), Losses())
    plain, losses[:] = list(losses), []
    fit(Module(), quiet(min_rank=8, budget=56), Losses())
    assert losses[:4] == plain[:4]  # after three steps all grow to 8
    assert losses[5] != plain[5]


def test_the_eight_steps_before_each_change_are_measured(fit, monkeypatch):
    seen = []
    monkeypatch.setattr(Sensitivity, "begin", lambda self: seen.append(None))

    class Steps(Callback):
        def on_train_batch_start(self, trainer, *_):
            if len(seen) and seen[-1] is None:
                seen[-1] = trainer.global_step + 1

    fit(Module(), quiet(start=9, every=12, until=21, importance="sensitivity"), Steps(), max_epochs=2)
    assert seen == [*range(2, 10), *range(14, 22)]


def test_a_layer_that_grows_twice_gets_other_directions(fit, monkeypatch):
    def more(scores, layers, *_):
        return {name: lora.rank + 2 for name, lora in layers.items()}

    monkeypatch.setattr("lightning_vlm_callbacks.adaptive_lora_rank.callback.share_ranks", more)
    module = Module(optimizer=lambda some, lr: torch.optim.SGD(some, lr=0.0))
    fit(module, quiet())
    for lora in lora_layers(module).values():
        assert lora.rank == 12
        assert len(lora.a.unique(dim=0)) == 12


def test_shares_of_the_run(fit):
    adaptive = quiet(start=0.25, every=0.25, until=0.8)
    fit(Module(), adaptive)
    assert [step for step, _ in adaptive._history] == [0, 3, 6, 9]
