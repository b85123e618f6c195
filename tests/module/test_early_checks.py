"""A run that is refused for its selectors leaves no run of a logger behind."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import AdaptiveLoRARank, GradientMonitor, GradNorm, StagedUnfreezing
from lightning_vlm_callbacks.selectors import SelectorError
from lightning_vlm_callbacks.staged_unfreezing.stages import PLANS

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.training.early_checks import check_selectors

WHOLE = {"vision": "full", "projector": "full", "language": {"lora": {"r": 2}}}


def stages(**train):
    return StagedUnfreezing([{"at": 0, "train": {"projector": 1.0}}, {"at": 0.5, "train": train}])


REFUSED = {
    "plan": (
        {"adapt": {"vision.layers[-4:]": {"lora": {"r": 8}}}},
        [],
        UserError,
        r"'vision.layers\[-4:\]': out of range: .* has 3 items; \[:\] names all of them, and \[50%:\]",
    ),
    "plan, misspelt": ({"adapt": {"vison": "full"}}, [], UserError, "nearest: vision"),
    "learning rates": ({"adapt": WHOLE, "learning_rates": {"hed": 1.0}}, [], UserError, "'hed'"),
    "clip": ({"adapt": WHOLE, "clip": {"visoin": 1.0}}, [], UserError, "nearest: vision"),
    "no gradient": (
        {"adapt": WHOLE, "no_gradient_needed": ["visoin"]},
        [],
        UserError,
        "^no_gradient_needed: ",
    ),
    "new tokens": ({"adapt": {"vison": "full"}, "new_tokens": ["<x>"]}, [], UserError, "nearest: vision"),
    "stages": (
        {"adapt": WHOLE},
        [stages(**{"vision.layers[24:32]": 1.0})],
        SelectorError,
        "has 3 items; .50%",
    ),
    "frozen": (
        {"adapt": {"projector": "full"}},
        [stages(vision=0.1)],
        MisconfigurationException,
        "frozen by the module; let them train there",
    ),
    "layer": ({"adapt": WHOLE}, [GradNorm(layer="langage.norm")], SelectorError, "nearest: language"),
    "ranks": ({"adapt": WHOLE}, [AdaptiveLoRARank(groups={"visoin": 1})], SelectorError, "nearest: vision"),
    "monitor": ({"adapt": WHOLE}, [GradientMonitor(["langage"])], SelectorError, "nearest: language"),
}


@pytest.mark.parametrize(("options", "callbacks", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_a_logger_begins(tmp_path, options, callbacks, error, message):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=logger, callbacks=callbacks, default_root_dir=tmp_path
    )
    data = VLMDataModule(train=Drawn("train", size=4), batch_size=2)
    with pytest.raises(error, match=message):
        trainer.fit(VLMModule("drawn-vlm", **options), data)
    assert logger._experiment is None
    assert not list(tmp_path.rglob("wandb"))


@pytest.mark.parametrize("plan", PLANS)
def test_ready_plans_fit_the_shipped_model(tmp_path, plan):
    trainer = Trainer(
        accelerator="cpu", logger=WandbLogger(save_dir=tmp_path), callbacks=[StagedUnfreezing(plan)]
    )
    module = VLMModule("drawn-vlm", adapt=WHOLE)
    torch.manual_seed(0)
    check_selectors(module, trainer, fits=True)
    after = torch.rand(1)
    assert module.model is None
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1)), "the check draws no random numbers"
