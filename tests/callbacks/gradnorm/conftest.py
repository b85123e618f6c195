"""Fits of modules with several tasks."""

import pytest
from torch.utils.data import DataLoader

from tests.support.task_modules import Keep, data


@pytest.fixture
def fit(make_trainer, tmp_path):
    def make(module, gradnorm, dataset=None, batch=8, ckpt_path=None, callbacks=(), **options):
        keep = Keep(gradnorm)
        given = {"max_epochs": 1, "default_root_dir": tmp_path, **options}
        trainer = make_trainer(callbacks=[gradnorm, keep, *callbacks], **given)
        trainer.fit(module, DataLoader(dataset or data(), batch), ckpt_path=ckpt_path)
        return keep

    return make
