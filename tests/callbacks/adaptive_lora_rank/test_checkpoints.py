"""A resumed run is the uninterrupted one bit for bit; plain PEFT loads what was trained."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import fit_ranks
from peft import PeftModel
from torch.utils.data import DataLoader

from tests.support.lora_modules import (
    Module,
    Net,
    assert_equal,
    data,
    everything,
    quiet,
    weights,
)


class ByStep(Module):
    """Its data is a function of the step: a plain loader starts over in the middle of an epoch."""

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
