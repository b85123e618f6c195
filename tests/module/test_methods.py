"""Each method through a whole run: trained, saved, loaded, gone on from, and on two ranks."""

import json
from functools import partial

import pytest
import torch
import wandb
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.plan.table import COLUMNS

PLANS = {
    "dora": {"language": {"lora": {"r": 2, "dora": True, "dropout": 0.2}}},
    "rslora": {"language": {"lora": {"r": 2, "rslora": True}}, "head": {"lora": {"r": 2, "rslora": True}}},
    "pissa": {"projector": "full", "language": {"lora": {"r": 2, "init": "pissa"}}},
    "pissa, fast": {"language": {"lora": {"r": 2, "init": "pissa_niter_2"}}},
    "olora": {"language": {"lora": {"r": 2, "init": "olora"}}},
    "ia3": {"language": "ia3", "vision.layers[:-1]": "ia3"},
    "adapter": {
        "language.layers[0]": {"adapter": {"reduction": 8}},
        "language.layers[1]": "cross_modal_adapter",
        "vision.layers[:-1]": {"adapter": {"kind": "parallel"}},
    },
}


@pytest.fixture(scope="module")
def source(listed, words):
    """Pictures, and text alone: batch by batch, so that on two ranks one has some and the other none."""
    drawn = list(Drawn("train", size=4, seed=3))
    return listed([drawn[0], words(), drawn[1], drawn[2], words("Who?", "You."), drawn[3]])


def fit(make_quiet, one, source, folder=None, ckpt_path=None, batch_size=2, **options):
    """Two epochs of three steps, or of six micro-batches on two ranks."""
    seed_everything(1)
    keep = (
        [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)] if folder else []
    )
    trainer = make_quiet(max_epochs=2, enable_checkpointing=bool(folder), callbacks=keep, **options)
    data = VLMDataModule(train=source, batch_size=batch_size, shuffle=False)
    trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
    return {name: p.detach().clone() for name, p in one.named_parameters()}


@pytest.fixture(scope="module")
def fresh(module):
    def make(method):
        return module("llava", adapt=PLANS[method], optimizer=partial(torch.optim.AdamW, lr=1e-2))

    return make


@pytest.fixture(scope="module")
def trained(fresh, make_quiet, source, tmp_path_factory):
    """Method -> the module at the end, its weights, and the folder of checkpoints; made once."""
    made = {}

    def of(method):
        if method not in made:
            one, folder = fresh(method), tmp_path_factory.mktemp("trained")
            made[method] = one, fit(make_quiet, one, source, folder), folder
        return made[method]

    return of


@pytest.mark.parametrize("method", PLANS)
def test_what_is_saved_loads_to_the_same_model(method, trained, fresh, batch_of):
    """Though chance stands elsewhere, of which adapters are made."""
    one, weights, folder = trained(method)
    start = fresh(method)
    for name, weight in start.named_parameters():
        assert torch.equal(weight, weights[name]) != weight.requires_grad, name
    torch.manual_seed(99)
    again = VLMModule.load_from_checkpoint(folder / "step=6.ckpt")
    batch = batch_of(one)
    with torch.no_grad():
        first, second, base = (each.model.eval()(**batch.inputs).logits for each in (one, again, start))
    assert torch.equal(first, second)
    assert not torch.allclose(first, base, atol=1e-3)


@pytest.mark.parametrize("method", PLANS)
def test_a_resumed_run_is_the_same_bit_for_bit(method, trained, fresh, make_quiet, source):
    _, weights, folder = trained(method)
    resumed = fit(make_quiet, fresh(method), source, ckpt_path=folder / "step=2.ckpt")
    for name, weight in weights.items():
        assert torch.equal(resumed[name], weight), name


@pytest.fixture(scope="module")
def on_ranks(on_two_ranks, fresh, make_quiet, source, folder):
    folder("llava")  # before the processes part
    plain = [method for method in PLANS if method != "dora"]  # each rank has its own dropout

    def fit_all():
        ranks = {"strategy": "ddp", "devices": 2, "batch_size": 1}
        return {method: fit(make_quiet, fresh(method), source, **ranks) for method in plain}

    return on_two_ranks(fit_all)


@pytest.mark.parametrize("method", [method for method in PLANS if method != "dora"])
def test_two_ranks_agree_and_do_what_one_does(method, trained, on_ranks):
    first, second = (rank[method] for rank in on_ranks)
    for name, weight in trained(method)[1].items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-3, atol=2e-4)


def test_the_plan_goes_to_weights_and_biases(module, make_quiet, source, tmp_path):
    data = VLMDataModule(train=source, batch_size=2)
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    make_quiet(max_steps=1, logger=logger).fit(module("llava", adapt="projector-only"), data)
    wandb.finish()
    wandb.teardown()  # its service would take other tests' relative paths for ones of this folder
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/plan_*.json")
    table = json.loads(file.read_text())
    assert tuple(table["columns"]) == COLUMNS
    projector, rest, whole = table["data"]
    assert projector == ["projector", "", "full", "", whole[4], 1.0]
    assert (rest[0], rest[4]) == ("(not named)", 0)
