"""Every callback runs on samples that share rows: all at once, each alone, and a run that goes on."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_vlm_callbacks import NonFiniteBundle, NonFiniteGuard

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from tests.callbacks.test_contract import CASES, IN_A_FIT, kind_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:EarlyStopCheckpoint. the best checkpoint", "ignore:.*LeafSpec", "ignore:Found .* in eval mode"
)
MAX_TOKENS = 200
"""Of a row: samples have 34 to 117."""
VLM = {
    "StagedUnfreezing": {
        "stages": [
            {"at": 0, "train": {"projector": 1.0}},
            {"at": 3, "train": {"projector": 0.5, "language": 1.0}},
        ],
        "unit": "step",
    },
    "GradNorm": {"layer": "language.layers[-1].mlp.down_proj.lora_B.default"},
    "AdaptiveLoRARank": {"budget": None},
}
"""Options that name parts of a language model instead of those of the contract's small project."""


def make(name):
    return kind_of(name)(**{**CASES[name].options, **VLM.get(name, {})})


@pytest.fixture(scope="module")
def fit(folder, make_quiet):
    """Two epochs of eight rows of two to four samples, in steps of two rows."""

    def run(callbacks, root, ckpt_path=None, seed=1, **options):
        torch.manual_seed(0)
        module = VLMModule(
            str(folder("llava")),
            adapt={"projector": "full", "language": {"lora": {"r": 3}}},
            optimizer=partial(torch.optim.AdamW, lr=3e-3),
            generation={"max_new_tokens": 2, "num_beams": 2, "num_return_sequences": 2},
        )
        data = VLMDataModule(
            train=Drawn("train", size=22), val=Drawn("val", size=2), batching="packed", max_tokens=MAX_TOKENS
        )
        saves = ModelCheckpoint(
            root / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=False
        )
        given = {"max_epochs": 2, "accumulate_grad_batches": 2, "default_root_dir": root, **options}
        trainer = make_quiet(callbacks=[*callbacks, saves], enable_checkpointing=True, **given)
        torch.manual_seed(seed or 0)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return trainer, {name: value.clone() for name, value in module.state_dict().items()}

    return run


@pytest.mark.parametrize(("logs", "middle"), [(False, 6), (True, 3)], ids=["no logger", "a logger"])
def test_all_at_once_and_resumed(fit, tmp_path, logs, middle):
    """From the middle of an epoch, bit for bit."""
    ends = []
    for step in (None, middle):
        root = tmp_path / f"from {step}"
        logger = CSVLogger(root) if logs else False
        ckpt_path = tmp_path / f"from None/saved/step={step}.ckpt" if step else None
        callbacks = [make(name) for name in IN_A_FIT]
        trainer, weights = fit(callbacks, root, ckpt_path, seed=step, logger=logger)
        assert trainer.global_step == 8
        assert trainer.callback_metrics["val/loss"].isfinite()
        ends.append(weights)
    whole, again = ends
    for name, weight in whole.items():
        assert weight.isfinite().all(), name
        assert torch.equal(again[name], weight), name


class Spoil(Callback):
    """NaN into a picture of the second row."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0 and batch_idx == 1:
            self.sources = batch.sources
            batch.inputs["pixel_values"].view(-1)[0] = torch.nan


def test_a_bad_picture_in_a_row_of_several(fit, tmp_path):
    """The step is left out, the samples of the row are named, and the row can be run again elsewhere."""
    spoil, guard = Spoil(), NonFiniteGuard(dirpath=str(tmp_path))
    with pytest.warns(UserWarning, match="NonFiniteGuard"):
        trainer, weights = fit([guard, spoil], tmp_path)
    assert guard.skipped == 1
    assert all(weight.isfinite().all() for weight in weights.values())
    folder = tmp_path / "step-00000000-rank0"
    text = (folder / "report.md").read_text()
    assert "batch 1: the loss is NaN or infinite" in text
    assert f"- Samples: {', '.join(spoil.sources)}." in text
    bundle = NonFiniteBundle.load(folder / "bundle.pt")
    assert bundle.batch.is_packed
    assert bundle.batch.sources == spoil.sources
    assert str(bundle.replay(trainer.lightning_module)) in text
