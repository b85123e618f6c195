"""A checkpoint of a sharded run of a VLMModule: resumed by two processes and by one, used like a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning_vlm_callbacks import EarlyStopCheckpoint

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.export.trained import ExportRequest, load_trained
from lightning_vlm.models.loading.checkpoint import check_file, load_file
from lightning_vlm.training.checkpoint_settings import read_checkpoint
from tests.support.ranks import call_on_ranks
from tests.support.sharded import Fit, make_module, make_trainer, whole, whole_weights

PLAN = {"language": {"lora": {"r": 2, "dropout": 0.1}}, "projector": "full"}


def run(
    ranks: int, model: Path, folder: Path, ckpt_path: Path | None = None, **options: Any
) -> dict[str, Any]:
    """A fit of four steps that saves each. What trains and the optimizer's state, whole, by name."""
    seed_everything(0, verbose=False)
    module = make_module(Fit(model, "llava", PLAN))
    data = VLMDataModule(
        train=Drawn("train", size=16), val=Drawn("val", size=4), batch_size=4 // ranks, seed=0
    )
    keep = EarlyStopCheckpoint(
        "val/loss", dirpath=str(folder), every_n_steps=1, keep_periodic=None, **options
    )
    trainer = make_trainer(
        ranks, max_epochs=1, enable_checkpointing=True, callbacks=[keep], default_root_dir=folder
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    found = whole_weights(module)
    for name, parameter in module.named_parameters():
        for key, value in trainer.optimizers[0].state.get(parameter, {}).items():
            found[f"{name}.{key}"] = whole(torch.as_tensor(value)).clone()
    return found


@pytest.fixture(scope="module")
def model(model_folder):
    return Path(model_folder("llava"))


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """The folder of an uninterrupted run of two processes, and ends.

    Of that run, of one resumed after step 2, of a run of one process, and of two that load what that wrote.
    """
    folder = tmp_path_factory.mktemp("sharded")
    alone = run(1, model, folder / "alone")

    def on_rank():
        end = run(2, model, folder / "whole")
        resumed = run(2, model, folder / "resumed", folder / "whole/step-00000002.ckpt", asynchronous=True)
        from_file = run(2, model, folder / "from-file", folder / "alone/step-00000004.ckpt")
        return {"end": end, "resumed": resumed, "from_file": from_file}

    return folder / "whole", {**call_on_ranks(on_rank)[1], "alone": alone}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_resumed_is_uninterrupted(runs):
    assert_same(runs[1]["resumed"], runs[1]["end"])


def test_one_process_loads_it(runs, model, tmp_path):
    """Weights and the optimizer's state; the run has ended, so that it trains no more."""
    folder, ends = runs
    assert_same(run(1, model, tmp_path, folder / "step-00000004.ckpt"), ends["end"])


def test_two_processes_load_what_one_wrote(runs):
    assert_same(runs[1]["from_file"], runs[1]["alone"])


def test_it_is_used_like_a_file(runs, model):
    folder, ends = runs
    last = folder / "latest.ckpt"
    check_file(last, to_resume=True)
    assert read_checkpoint(last)[2] == 4
    weights = load_file(last)["state_dict"]
    names = [name for name in ends["end"] if name in weights]
    assert len(names) == len(weights)
    assert all(torch.equal(weights[name], ends["end"][name]) for name in names)
    trained = load_trained(ExportRequest(last))
    own = dict(trained.module.named_parameters())
    assert all(torch.equal(own[name].detach(), weights[name].float()) for name in weights)


def test_a_half_written_folder_is_named(runs, tmp_path):
    (tmp_path / "step-00000001.ckpt").mkdir()
    (tmp_path / "step-00000001.ckpt/__0_0.distcp").write_bytes(b"")
    with pytest.raises(UserError, match="found a checkpoint that was never finished"):
        check_file(tmp_path / "step-00000001.ckpt")
