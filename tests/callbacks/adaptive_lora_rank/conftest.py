"""Fits of a module with LoRA."""

import pytest
from torch.utils.data import DataLoader

from tests.support.lora_modules import Keep, data


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
