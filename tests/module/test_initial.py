"""A model whose files lack its projector: reported at the start, trained, and resumed bit for bit."""

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from tests.support import tiny

PLAN = {"projector": "full", "language": {"lora": {"r": 2}}}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    folder = tiny.build("llava", tmp_path_factory.mktemp("bare"))
    weights = load_file(folder / "model.safetensors")
    left = {name: one for name, one in weights.items() if "projector" not in name}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def fit(make_quiet, folder, one, ckpt_path=None):
    seed_everything(1)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_quiet(max_epochs=2, enable_checkpointing=True, callbacks=[keep])
    data = VLMDataModule(train=Drawn("train", size=4), batch_size=2)
    trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
    return {name: p.detach().clone() for name, p in one.named_parameters()}


def test_a_new_projector_is_reported_trained_and_resumed(bare, make_quiet, tmp_path, capsys):
    whole = fit(make_quiet, tmp_path / "whole", VLMModule(bare, adapt=PLAN))
    shown = capsys.readouterr().out
    for line in ("projector: standard deviation", "LoRA: B"):
        (row,) = [one for one in shown.splitlines() if line in one]
        assert "ok" in row
    torch.rand(7)  # so that the projector is drawn otherwise
    resumed = fit(make_quiet, tmp_path / "again", VLMModule(bare, adapt=PLAN), tmp_path / "whole/step=3.ckpt")
    assert "LoRA: B" not in capsys.readouterr().out, "it has left its start"
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
    again = VLMModule.load_from_checkpoint(tmp_path / "whole/step=4.ckpt")
    for name, weight in again.named_parameters():
        assert torch.equal(weight, whole[name]), name


def test_it_must_train(bare):
    one = VLMModule(bare, adapt={"language": {"lora": {"r": 2}}})
    with pytest.raises(UserError, match=r"files lack model\.multi_modal_projector.* \(`projector: full`\)"):
        one.configure_model()
    excused = ["projector"]
    VLMModule(bare, adapt={"language": {"lora": {"r": 2}}}, no_gradient_needed=excused).configure_model()
