"""A clock that was set back chooses no checkpoint, or it is said that it did."""

import os
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vlm.chat.opened import newest_checkpoint
from lightning_vlm.training.named_checkpoints import find_named


def checkpoint(file, step, clock):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": step}, file)
    os.utime(file, (clock, clock))
    return file


def test_chat_takes_the_run_with_the_highest_number(tmp_path):
    logs = tmp_path / "lightning_logs"
    checkpoint(logs / "version_9/checkpoints/step-00000006.ckpt", 6, 3_000)
    checkpoint(logs / "version_10/checkpoints/step-00000001.ckpt", 1, 2_000)
    newest = checkpoint(logs / "version_10/checkpoints/step-00000002.ckpt", 2, 1_000)
    checkpoint(tmp_path / "kept/step-00000007.ckpt", 7, 500)
    assert newest_checkpoint(tmp_path) == newest
    other = checkpoint(tmp_path / "kept/step-00000003.ckpt", 3, 4_000)
    assert newest_checkpoint(tmp_path) == other.with_name("step-00000007.ckpt")
    assert newest_checkpoint(tmp_path / "kept/none") is None


@pytest.mark.parametrize("set_back", [True, False])
def test_last_of_lightnings_own_callback(set_back, tmp_path):
    older = checkpoint(tmp_path / "last.ckpt", 2, 2_000 if set_back else 500)
    newer = checkpoint(tmp_path / "last-v1.ckpt", 5, 1_000)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        find_named(trainer, "last")
    said = [str(one.message) for one in found if "ckpt_path last" in str(one.message)]
    expected = (
        f"ckpt_path last: takes {older} (step 2), the newest by the clock, but {newer} has step 5; if that "
        f"one is newer, give --ckpt_path {newer}"
    )
    assert said == ([expected] if set_back else [])
