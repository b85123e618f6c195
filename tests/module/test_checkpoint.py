"""Checkpoints hold what trains, know their base model, and resume bit for bit."""

import json

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.training.run_state import RunState
from tests.support import tiny

PLAN = {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}}


def fit(make_quiet, one, folder, ckpt_path=None, **options):
    """4 steps of 2 × 2 an epoch."""
    seed_everything(1)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_quiet(
        accumulate_grad_batches=2, enable_checkpointing=True, callbacks=[keep], **{"max_epochs": 2, **options}
    )
    data = VLMDataModule(train=Drawn("train", size=14), batch_size=2)
    trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
    return {name: p.detach().clone() for name, p in one.named_parameters()}, trainer


@pytest.fixture(scope="module")
def trained(module, make_quiet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    one = module("llava", adapt=PLAN)
    weights, _ = fit(make_quiet, one, folder)
    return one, weights, folder


def path(trained, step):
    return trained[2] / f"step={step}.ckpt"


def test_it_holds_what_trains_and_says_of_what(trained, folder):
    one, weights, _ = trained
    saved = torch.load(path(trained, 8), weights_only=True)
    trains = {name for name, p in one.named_parameters() if p.requires_grad}
    assert saved["state_dict"].keys() == trains
    assert all(torch.equal(saved["state_dict"][name], weights[name]) for name in trains)
    assert saved["lightning_vlm"]["name_or_path"] == str(folder("llava"))
    hparams = saved["hyper_parameters"]
    assert json.loads(json.dumps(hparams)) == hparams


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_resumed_run_is_the_same_bit_for_bit(trained, module, make_quiet, tmp_path, step):
    """In the middle of an epoch, at its end (step 4), with dropout, and chance in another state before."""
    torch.rand(step)
    resumed, trainer = fit(make_quiet, module("llava", adapt=PLAN), tmp_path, path(trained, step))
    assert trainer.global_step == 8
    for name, weight in trained[1].items():
        assert torch.equal(resumed[name], weight), name


def test_so_it_is_when_the_end_is_a_number_of_steps(module, make_quiet, tmp_path):
    ends = {"max_epochs": -1, "max_steps": 6}
    whole, _ = fit(make_quiet, module("llava", adapt=PLAN), tmp_path / "whole", **ends)
    for step in (3, 4):
        one = module("llava", adapt=PLAN)
        resumed, _ = fit(make_quiet, one, tmp_path / str(step), tmp_path / f"whole/step={step}.ckpt", **ends)
        for name, weight in whole.items():
            assert torch.equal(resumed[name], weight), (step, name)


def test_statistics_of_a_norm_that_trains(folder, make_quiet, tmp_path, monkeypatch):
    """They change in every forward, so in the middle of a step too; there is one file for each batch."""

    class WithNorm(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.norm = inner, nn.BatchNorm1d(inner.out_features)

        def forward(self, x):
            return self.norm(self.inner(x).flatten(0, -2)).view(*x.shape[:-1], -1)

    def load(*args, **options):
        loaded = load_model(*args, **options)
        projector = loaded.model.model.multi_modal_projector
        projector.linear_2 = WithNorm(projector.linear_2)
        return loaded

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / f"{trainer.fit_loop.batch_idx}.ckpt")

    def norm_of(one):
        return {
            name: kept.clone()
            for name, kept in one.state_dict().items()
            if "norm." in name and "proj" in name
        }

    def run(ckpt_path=None):
        one = VLMModule(str(folder("llava")), adapt={"projector": "full"}, chat_template="plain")
        seed_everything(1)
        trainer = make_quiet(accumulate_grad_batches=2, max_epochs=2, callbacks=[] if ckpt_path else [Save()])
        data = VLMDataModule(train=Drawn("train", size=6), batch_size=2)
        trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
        return norm_of(one)

    monkeypatch.setattr("lightning_vlm.models.source.load_model", load)
    expected = run()
    assert expected.keys() >= {
        f"model.model.multi_modal_projector.linear_2.norm.running_{x}" for x in ("mean", "var")
    }
    for batch in range(3):
        resumed = run(tmp_path / f"{batch}.ckpt")
        for name, kept in expected.items():
            assert torch.equal(resumed[name], kept), (batch, name)
    loaded = norm_of(VLMModule.load_from_checkpoint(tmp_path / "2.ckpt"))
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)["lightning_vlm"]["buffers"]
    assert len(saved) == 3
    assert all(torch.equal(loaded[f"model.{name}"], kept) for name, kept in saved.items())


def test_another_seed_drops_other_things(trained, module, make_quiet, tmp_path, monkeypatch):
    """Else the tests above would say nothing about dropout."""
    monkeypatch.setattr(RunState, "on_train_batch_start", lambda *_: None)
    resumed, _ = fit(make_quiet, module("llava", adapt=PLAN), tmp_path, path(trained, 1))
    assert any(not torch.equal(resumed[name], weight) for name, weight in trained[1].items())


def test_load_from_checkpoint_gives_the_same_model(trained, batch_of):
    one = trained[0]
    again = VLMModule.load_from_checkpoint(path(trained, 8))
    batch = batch_of(one)
    with torch.no_grad():
        logits = [each.model.eval()(**batch.inputs).logits for each in (one, again)]
    assert torch.equal(*logits)
    assert again.adapt == PLAN
    assert again.token_weights == one.token_weights


def test_another_base_model(trained, tmp_path):
    other = tiny.build("llava", tmp_path, seed=9)
    with pytest.raises(UserError, match=r"trained on .* but model\.name_or_path .* has other weights"):
        VLMModule.load_from_checkpoint(path(trained, 8), name_or_path=str(other))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"language": PLAN["language"]}, r"4 frozen here \(model\.model\.multi_modal_projector"),
        ({"projector": "full"}, r"\d+ unknown \(model\.model\.language_model.*lora_A"),
        ({**PLAN, "head": "full"}, r"1 missing \(model\.lm_head\.weight\)"),
        (
            {"projector": "full", "language": {"lora": {"r": 3}}},
            r"\d+ of another shape \(.*\(2, 64\) for \(3, 64\)",
        ),
    ],
)
def test_another_plan(trained, plan, said):
    with pytest.raises(UserError, match=said):
        VLMModule.load_from_checkpoint(path(trained, 8), adapt=plan)


def test_a_checkpoint_of_something_else(trained, module, make_quiet, tmp_path):
    saved = torch.load(path(trained, 1), weights_only=True)
    del saved["lightning_vlm"]
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not written by a VLMModule"):
        fit(make_quiet, module("llava", adapt=PLAN), tmp_path, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not written by a VLMModule"):
        VLMModule.load_from_checkpoint(tmp_path / "other.ckpt")
