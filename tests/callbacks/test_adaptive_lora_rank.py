"""AdaptiveLoRARank in runs: budgets, two ranks, resume bit for bit, plain PEFT, refusals."""

import copy
import csv

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import AdaptiveLoRARank
from lightning_vlm_callbacks.adaptive_lora_rank.importance import Sensitivity
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import fit_ranks, lora_layers
from lightning_vlm_callbacks.selectors import SelectorError
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Block(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.up, self.down = nn.Linear(wide, 24), nn.Linear(24, wide)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    def __init__(self, wide=16):
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.ModuleList([Block(wide)])
        self.text = nn.ModuleList([Block(wide), Block(wide)])
        self.head = nn.Linear(wide, 8)

    def forward(self, x):
        for block in [*self.vision, *self.text]:
            x = block(x)
        return self.head(x)


class Module(LightningModule):
    """Regression with LoRA of rank 4 on 7 layers, or on those named."""

    def __init__(self, wrap=True, optimizer=torch.optim.AdamW, net=Net, **options):
        super().__init__()
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["up", "down", "head"], **options})
        model = net()
        torch.manual_seed(1)
        self.model = get_peft_model(model, config) if wrap else inject_adapter_in_model(config, model)
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.model(x).float() - y).square().mean()

    def test_step(self, batch, batch_idx):
        self.log("test", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        optimizer = self.optimizer([one for one in self.parameters() if one.requires_grad], lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.98**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Keep(Callback):
    """Ranks after each batch, and whether the sum of all is always what an optimizer holds two of."""

    def __init__(self):
        self.ranks, self.held = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        layers = lora_layers(pl_module)
        self.ranks.append({name: one.rank for name, one in layers.items()})
        kept = [one for state in trainer.optimizers[0].state.values() for one in state.values() if one.ndim]
        self.held.append(
            (sum(map(torch.numel, kept)), 2 * sum(one.rank * one.cost for one in layers.values()))
        )


def data(size=96, seed=0):
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 16, generator=chance)
    return TensorDataset(x, torch.tanh(x @ torch.randn(16, 8, generator=chance)))


def quiet(**options):
    given = {"min_rank": 2, "max_rank": 12, "multiple_of": 2, "start": 3, "every": 2, "until": 9}
    return AdaptiveLoRARank(**{**given, **options})


@pytest.fixture
def fit(make_trainer, tmp_path):
    def run(module, *callbacks, batch=8, ckpt_path=None, **options):
        keep = Keep()
        given = {"max_epochs": 1, "default_root_dir": tmp_path, **options}
        trainer = make_trainer(callbacks=[*callbacks, keep], **given)
        trainer.fit(module, DataLoader(data(), batch), ckpt_path=ckpt_path)
        keep.trainer = trainer
        return keep

    return run


def weights(module):
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


def everything(trainer, module):
    state = trainer.optimizers[0].state_dict()["state"]
    kept = {f"{index}.{key}": one for index, some in state.items() for key, one in some.items()}
    return {**weights(module), **kept}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(one)), name


# What it does


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
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
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
        for name, one in module.named_parameters():
            one.requires_grad_("lora" in name and "text.1.up" in name)
        keep = fit(module, quiet(importance=importance, budget=32))
        last = {name.partition("model.model.")[2]: rank for name, rank in keep.ranks[-1].items()}
        assert last["text.1.up"] == 8
        assert sum(last.values()) == 32


def test_a_budget_of_parameters(fit):
    keep = fit(Module(), quiet(unit="parameters", budget=900, min_rank=0))
    costs = {name: one.cost for name, one in lora_layers(keep.trainer.lightning_module).items()}
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
    frozen = [one for name, one in lora_layers(module).items() if "vision" in name]
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


@pytest.mark.parametrize("importance", ["fisher", "activation"])
def test_a_run_that_fails_is_tidied_up(fit, importance):
    module = Module()
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(module, quiet(importance=importance))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
    assert "on_load_checkpoint" not in vars(module)


# Runs of all kinds


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "activation"])
def test_accumulation_and_mixed_precision(fit, options, importance):
    adaptive = quiet(until=5, importance=importance, min_rank=1, multiple_of=1, budget=45)
    keep = fit(Module(), adaptive, **options)
    assert len(set(keep.ranks[-1].values())) > 1
    assert sum(keep.ranks[-1].values()) == 45
    if "accumulate_grad_batches" in options:
        assert set(keep.ranks[4].values()) == {4}  # two optimizer steps
        assert keep.ranks[5] == keep.ranks[6] != keep.ranks[4]  # three, and the batch after


def test_base_weights_in_4_bits(fit):
    bnb = pytest.importorskip("bitsandbytes")

    class Quantised(nn.Module):
        is_loaded_in_4bit = True

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = (
                bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4") for _ in range(2)
            )
            self.head = nn.Linear(64, 8)
            for one in (self.up, self.down):
                one.load_state_dict(nn.Linear(64, 64).state_dict())
            self.to("cpu")
            self(torch.randn(1, 16))

        def forward(self, x):
            x = torch.nn.functional.pad(x, (0, 48))
            return self.head(torch.tanh(self.down(torch.tanh(self.up(x)))))

    module = Module(net=Quantised)
    assert {type(one.layer).__name__ for one in lora_layers(module).values()} == {"Linear4bit", "Linear"}
    keep = fit(module, quiet(importance="fisher", multiple_of=1, budget=20))
    assert len(set(keep.ranks[-1].values())) > 1
    assert sum(keep.ranks[-1].values()) == 20


def test_another_optimizer(fit):
    keep = fit(Module(optimizer=torch.optim.SGD), quiet())
    assert len(set(keep.ranks[-1].values())) > 1


def test_torch_compile(fit):
    module = Module()
    module.model.forward = torch.compile(module.model.forward, backend="eager")
    plain = Module()
    compiled, eager = fit(module, quiet()), fit(plain, quiet())
    assert compiled.ranks == eager.ranks
    for mine, theirs in zip(weights(module).values(), weights(plain).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "activation"])
def test_two_ranks_are_one(make_trainer, on_two_ranks, tmp_path, importance):
    """Each has other data, so that without averaged gradients the two would part."""
    dataset = data()

    def run(*two):
        module, seen = Module(), []

        class See(Callback):
            def on_train_batch_end(self, trainer, pl_module, *_):
                seen.append(everything(trainer, pl_module))

        options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False} if two else {}
        callbacks = [quiet(importance=importance, min_rank=0), See()]
        trainer = make_trainer(callbacks=callbacks, max_epochs=1, default_root_dir=tmp_path, **options)
        order = torch.arange(96).view(12, 8)
        order = order.view(12, 2, 4)[:, trainer.global_rank] if two else order
        trainer.fit(module, DataLoader(dataset, batch_sampler=order.tolist()))
        return seen

    alone = run()
    first, second = on_two_ranks(run, 2)
    for mine, other, one in zip(first, second, alone, strict=True):
        assert_equal(mine, other)
        assert {name: value.shape for name, value in mine.items()} == {
            name: value.shape for name, value in one.items()
        }
    for name, value in alone[-1].items():
        if "lora" in name:
            torch.testing.assert_close(first[-1][name], value, rtol=0.02, atol=2e-3)


# Checkpoints


class ByStep(Module):
    """Its data is a function of the step: a plain loader begins anew in the middle of an epoch."""

    def training_step(self, batch, batch_idx):
        return super().training_step(data()[self.trainer.global_step * 4 % 88 :][:8], batch_idx)


@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "activation"])
@pytest.mark.parametrize("end", [{"max_epochs": 2}, {"max_steps": 24, "max_epochs": -1}])
@pytest.mark.parametrize("at", [4, 9, 14])
def test_a_resumed_run_is_the_uninterrupted_one(fit, tmp_path, importance, end, at):
    """From between two changes, from a change itself, and from a measured step before one."""

    def run(folder, **options):
        module = ByStep()
        saves = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        adaptive = quiet(importance=importance, every=6, until=21, min_rank=0, multiple_of=1, budget=45)
        keep = fit(module, adaptive, saves, enable_checkpointing=True, **end, **options)
        return everything(keep.trainer, module), adaptive

    whole, adaptive = run("whole")
    again, resumed = run("again", ckpt_path=tmp_path / "whole" / f"step={at}.ckpt")
    assert_equal(again, whole)
    assert resumed._history == adaptive._history
    assert [step for step, _ in resumed._history] == [0, 3, 9, 15, 21]


def test_a_change_that_is_due_survives_a_resume(fit, tmp_path):
    """Saved in the hook in which ranks change, by a callback that comes before."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 9 and not (tmp_path / "9.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "9.ckpt")

    def run(**options):
        module, adaptive = ByStep(), quiet(every=6, until=21, min_rank=0, multiple_of=1, budget=45)
        keep = fit(module, Save(), adaptive, enable_checkpointing=True, max_epochs=2, **options)
        return everything(keep.trainer, module), adaptive

    whole, adaptive = run()
    again, resumed = run(ckpt_path=tmp_path / "9.ckpt")
    assert resumed._history == adaptive._history
    assert_equal(again, whole)


def test_plain_peft_loads_what_was_trained(fit, tmp_path):
    module = Module()
    keep = fit(module, quiet(min_rank=0, importance="activation", budget=12))
    assert len(keep.ranks[-1]) < 7
    module.model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(Net(), tmp_path / "adapter")
    x = torch.randn(5, 16)
    assert torch.equal(again(x), module.model(x))
    merged = copy.deepcopy(module.model).merge_and_unload()
    torch.testing.assert_close(merged(x), module.model(x))


class Fits(Module):
    def on_load_checkpoint(self, checkpoint):
        fit_ranks(self, checkpoint)


@pytest.mark.parametrize("only_weights", [False, True])
def test_checkpoints_load_outside_of_a_fit(fit, make_trainer, tmp_path, only_weights):
    module = Module()
    least = 2 if only_weights else 0
    keep = fit(module, quiet(min_rank=least, budget=20))
    keep.trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=only_weights)
    again = Fits.load_from_checkpoint(tmp_path / "last.ckpt")
    assert_equal(weights(again), weights(module))
    tester = make_trainer(callbacks=[quiet()])
    expected = tester.test(module, DataLoader(data(), 8), verbose=False)
    other = make_trainer(callbacks=[quiet()])
    assert (
        other.test(Module(), DataLoader(data(), 8), ckpt_path=tmp_path / "last.ckpt", verbose=False)
        == expected
    )


def test_another_model_is_refused_on_resume(fit, tmp_path):
    first = Module()
    fit(first, quiet()).trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match="has no LoRA adapter here"):
        fit(Module(target_modules=["up"]), quiet(), max_epochs=2, ckpt_path=tmp_path / "last.ckpt")


# What is seen


def test_logs_table_and_lines(fit, tmp_path, monkeypatch, caplog):
    tables = []
    wandb = WandbLogger(save_dir=tmp_path, offline=True)  # a real run
    log = wandb.log_table
    monkeypatch.setattr(wandb, "log_table", lambda *table: (tables.append(table), log(*table)))
    loggers = [CSVLogger(tmp_path, name="", version="run"), wandb]
    with caplog.at_level("INFO"):
        keep = fit(Module(), quiet(), logger=loggers)
    wandb.experiment.finish()
    assert list(tmp_path.rglob("ranks*.table.json"))
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("adaptive_lora_rank/parameters")]
    assert [int(row["step"]) for row in rows] == [3, 5, 7, 9]
    ((key, columns, rows),) = tables
    assert key == "adaptive_lora_rank/ranks"
    assert columns == ["step", "layer", "rank"]
    assert len(rows) == 5 * 7
    last = {name: rank for step, name, rank in rows if step == 9}
    assert last == keep.ranks[-1]
    text = [line for line in caplog.messages if "AdaptiveLoRARank" in line]
    assert "7 LoRA layers, ranks 4, 28 in all" in text[0]
    assert "after 4 steps: 3, 5, 7 ..." in text[0]
    assert len(text) == 5
    assert "step 3, " in text[1]
    assert "of 7 layers changed" in text[1]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_rank": 3}, "min_rank, max_rank: found 3 and 12"),
        ({"budget": 0}, "budget: found 0; expected 1 or more"),
        ({"importance": "magnitude"}, "importance: found 'magnitude'"),
        ({"unit": "bytes"}, "unit: found 'bytes'"),
        ({"start": 0}, "start: found 0"),
        ({"every": 1.5}, "every: found 1.5"),
        ({"until": -1}, "until: found -1"),
        ({"groups": {"head": 0.0}}, r"groups\['head'\]: found 0.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        quiet(**options)


@pytest.mark.parametrize(
    ("module", "options", "run", "error", "message"),
    [
        ({"target_modules": []}, {}, {}, MisconfigurationException, "found no linear layer with LoRA"),
        ({"use_dora": True}, {}, {}, MisconfigurationException, "up: found DoRA"),
        (
            {},
            {"budget": 13},
            {},
            MisconfigurationException,
            "found 13, but min_rank 2 for 7 modules costs 14",
        ),
        ({}, {"groups": {"model": 1.0, "*text": 1.0}}, {}, MisconfigurationException, "in 'model' and "),
        ({}, {"groups": {"*text": 1.0}}, {}, MisconfigurationException, "vision.0.up in none of them"),
        (
            {},
            {"groups": {"*head.base_layer": 1.0}},
            {},
            MisconfigurationException,
            "found no LoRA layer in it",
        ),
        ({}, {"groups": {"*tex": 1.0}}, {}, SelectorError, "tex"),
        (
            {},
            {"groups": {"*vision": 1.0, "*text": 9.0, "*head": 9.0}},
            {},
            MisconfigurationException,
            r"groups\['\*vision'\]: budget: found 1",
        ),
        ({}, {"until": 13}, {}, MisconfigurationException, "until: found 13, but the run has 12 steps"),
        (
            {},
            {"start": 10},
            {},
            MisconfigurationException,
            r"start: found step 10, which is after until \(9\)",
        ),
        (
            {},
            {"until": 0.5},
            {"max_epochs": -1},
            MisconfigurationException,
            "found 0.5, a share of a run that has no end",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(fit, module, options, run, error, message):
    made = Module(**module) if module.get("target_modules") != [] else Bare()
    steps = []
    made.training_step = lambda *_: steps.append(1)
    with pytest.raises(error, match=message):
        fit(made, quiet(**options), **run)
    assert not steps
    assert "on_load_checkpoint" not in vars(made)


class Bare(Module):
    def __init__(self):
        LightningModule.__init__(self)
        self.model = Net()
        self.optimizer = torch.optim.AdamW


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_split_the_model(strategy):
    trainer = type("T", (), {"strategy": strategy.__new__(strategy)})()
    with pytest.raises(MisconfigurationException, match=f"found trainer.strategy {strategy.__name__}"):
        quiet().setup(trainer, Module(), "fit")


def test_manual_optimization(fit):
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="manual optimization"):
        fit(module, quiet())


def test_shares_of_the_run(fit):
    adaptive = quiet(start=0.25, every=0.25, until=0.8)
    fit(Module(), adaptive)
    assert [step for step, _ in adaptive._history] == [0, 3, 6, 9]


def test_fast_dev_run(fit):
    fit(Module(), quiet(until=9000), fast_dev_run=True)
