"""Checkpoints of trained tiny models, and folders written from them."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_vlm import VLMModule
from lightning_vlm.export.trained import ExportRequest, load_trained
from lightning_vlm.export.write import write
from lightning_vlm.models.plan.new_tokens import new_rows
from tests.support import tiny


@pytest.fixture(scope="session")
def checkpoint_of(model_folder, tmp_path_factory):
    """A checkpoint of a plan whose trained weights are far from their start."""

    def make(family, plan, **options):
        torch.manual_seed(0)
        if family in tiny.FAMILIES and tiny.FAMILIES[family].template is None:
            options.setdefault("chat_template", "plain")
        module = VLMModule(str(model_folder(family)), adapt=plan, **options)
        module.configure_model()
        with torch.no_grad():
            for name, one in module.named_parameters():
                if one.requires_grad:
                    change = torch.randn_like(one, dtype=torch.float32) * 0.05
                    rows = new_rows(module.model)
                    if rows and ("embed" in name or "lm_head" in name):  # their other rows don't train
                        change[: rows.start] = 0
                    one.add_(change.to(one.dtype))
        folder = tmp_path_factory.mktemp("trained")
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.strategy.connect(module)
        module.trainer = trainer
        trainer.save_checkpoint(folder / "last.ckpt")
        return folder / "last.ckpt"

    return make


@pytest.fixture(scope="session")
def export_of(checkpoint_of, tmp_path_factory):
    """A folder that isn't proved yet."""

    def make(family, plan, adapter_only, dtype="auto", shard="5GB", **options):
        request = ExportRequest(
            checkpoint_of(family, plan, **options),
            adapter_only,
            samples=3,
            dtype=dtype,
            max_shard_size=shard,
        )
        return write(load_trained(request), tmp_path_factory.mktemp("exported"), request).export

    return make
