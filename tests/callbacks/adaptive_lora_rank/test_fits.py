"""Runs of all kinds: accumulation, precision, 4 bits, compiled, on two ranks; what they log."""

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import lora_layers
from torch import nn
from torch.utils.data import DataLoader

from tests.support.lora_modules import Module, assert_equal, data, everything, quiet, weights
from tests.support.ranks import DDP


@pytest.mark.parametrize("importance", ["fisher", "activation"])
def test_a_run_that_fails_is_tidied_up(fit, importance):
    module = Module()
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(module, quiet(importance=importance))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert "on_load_checkpoint" not in vars(module)


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
            for layer in (self.up, self.down):
                layer.load_state_dict(nn.Linear(64, 64).state_dict())
            self.to("cpu")
            self(torch.randn(1, 16))

        def forward(self, x):
            x = torch.nn.functional.pad(x, (0, 48))
            return self.head(torch.tanh(self.down(torch.tanh(self.up(x)))))

    module = Module(net=Quantised)
    assert {type(lora.layer).__name__ for lora in lora_layers(module).values()} == {"Linear4bit", "Linear"}
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

        options = DDP if two else {}
        callbacks = [quiet(importance=importance, min_rank=0), See()]
        trainer = make_trainer(callbacks=callbacks, max_epochs=1, default_root_dir=tmp_path, **options)
        order = torch.arange(96).view(12, 8)
        order = order.view(12, 2, 4)[:, trainer.global_rank] if two else order
        trainer.fit(module, DataLoader(dataset, batch_sampler=order.tolist()))
        return seen

    alone = run()
    first, second = on_two_ranks(run, 2)
    for mine, other, expected in zip(first, second, alone, strict=True):
        assert_equal(mine, other)
        shapes = {name: value.shape for name, value in mine.items()}
        assert shapes == {name: value.shape for name, value in expected.items()}
    for name, value in alone[-1].items():
        if "lora" in name:
            torch.testing.assert_close(first[-1][name], value, rtol=0.02, atol=2e-3)


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
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]  # of steps counted from 0
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


def test_fast_dev_run(fit):
    fit(Module(), quiet(until=9000), fast_dev_run=True)
