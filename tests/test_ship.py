import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import TASKS, Drawn
from lightning_vlm.errors import UserError
from tools import ship, shipped


def test_what_was_trained_is_what_plain_transformers_loads(tmp_path):
    base = shipped.create(tmp_path / "base")
    module = VLMModule(
        str(base),
        adapt={"vision": "full", "projector": "full", "language": "full"},
        no_gradient_needed=["model.model.vision_tower.post_layernorm"],
    )
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, VLMDataModule(train=Drawn(size=4), batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    directory = ship.ship(base, tmp_path / "last.ckpt", tmp_path / "shipped", samples=30)

    loaded = AutoModelForImageTextToText.from_pretrained(directory).state_dict()
    trained = module.model.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in loaded)
    untrained = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    assert any(not torch.equal(loaded[name], untrained[name]) for name in loaded)
    assert AutoProcessor.from_pretrained(directory).chat_template == shipped.CHAT_TEMPLATE
    card = (directory / "README.md").read_text("utf-8")
    assert "in 1 steps" in card
    assert all(f"| {task} |" in card for task in TASKS)


def test_command():
    with pytest.raises(UserError, match="BASE CHECKPOINT DIR"):
        ship.main([])
