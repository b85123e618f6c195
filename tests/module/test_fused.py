"""Adam in one kernel: chosen on a GPU alone, and right with clipping, loss scaling, callbacks and resume.

PyTorch has the fused kernel for a CPU too, which stands for a GPU's here.
"""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning_vlm_callbacks import AdaptiveLoRARank, GradientMonitor, NonFiniteGuard, StagedUnfreezing

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.optim import Constant, optimizer

PLAN = {"projector": "full", "language": {"lora": {"r": 4}}}


@pytest.fixture
def fit(module, make_quiet, monkeypatch):
    """Fit a module; with `device`, the kind of device on which Adam is fused."""

    def run(device, callbacks=(), ckpt_path=None, **options):
        monkeypatch.setattr(optimizer, "FUSED_ON", {device})
        one = module("llava", adapt=PLAN, optimizer=partial(torch.optim.AdamW, lr=1e-2), clip=0.1)
        one.schedule = Constant()
        data = VLMDataModule(train=Drawn("train", size=8), batch_size=2, processor=one.processor)
        options = {"max_steps": 4, **options}
        options.setdefault("enable_checkpointing", bool(callbacks))
        trainer = make_quiet(callbacks=list(callbacks), **options)
        trainer.fit(one, data, ckpt_path=ckpt_path)
        weights = {name: one.detach() for name, one in one.named_parameters() if one.requires_grad}
        return weights, trainer

    return run


def fused_of(trainer):
    return {group["fused"] for group in trainer.optimizers[0].param_groups}


def test_the_same_steps(fit):
    expected, trainer = fit("cuda")
    assert fused_of(trainer) == {None}  # this is a CPU
    found, trainer = fit("cpu")
    assert fused_of(trainer) == {True}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # Adam enlarges rounding


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (partial(torch.optim.Adam, lr=1e-2), True),
        (partial(torch.optim.AdamW, lr=1e-2, fused=False), False),
        (partial(torch.optim.AdamW, lr=1e-2, foreach=True), None),
        (partial(torch.optim.AdamW, lr=1e-2, capturable=True), None),
        (partial(torch.optim.SGD, lr=1e-2), None),
        (partial(torch.optim.NAdam, lr=1e-2), None),
    ],
)
def test_arguments_that_choose_are_kept(make, fused, module, make_quiet, monkeypatch):
    monkeypatch.setattr(optimizer, "FUSED_ON", {"cpu"})
    one = module("llava", adapt=PLAN)
    made = optimizer.make_optimizer(make, one, {}, make_quiet())
    assert {group.get("fused") for group in made.param_groups} == {fused}


def test_with_loss_scaling_and_clipping(fit):
    """float16's scaler unscales before gradients are clipped; a step that isn't finite is left out."""
    ends = []
    for device in ("cuda", "cpu"):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        weights, trainer = fit(
            device,
            plugins=[plugin],
            callbacks=[NonFiniteGuard(), GradientMonitor()],
            enable_checkpointing=False,
        )
        assert scaler.get_scale() == 2.0**10
        ends.append(weights)
    assert fused_of(trainer) == {True}
    for name, weight in ends[0].items():
        # Where a gradient is nearly 0, rounding decides which way Adam goes.
        close = torch.isclose(ends[1][name], weight, rtol=1e-2, atol=1e-3)
        assert close.float().mean() > 0.99, name


@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda"), ("cpu", "cpu")])
def test_resumed_on_another_kind_of_device(first, then, fit, tmp_path, recwarn):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    expected, _ = fit(first, callbacks=[saves])
    recwarn.clear()
    found, trainer = fit(
        then, callbacks=[ModelCheckpoint(tmp_path / "b")], ckpt_path=tmp_path / "step=2.ckpt"
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert fused_of(trainer) == {True if then == "cpu" else None}
    assert not [one for one in recwarn if "fused" in str(one.message)]


def test_with_stages_and_moving_ranks(fit):
    ends = []
    for device in ("cuda", "cpu"):
        ranks = AdaptiveLoRARank(min_rank=1, max_rank=8, multiple_of=1, start=1, every=1, until=3)
        stages = StagedUnfreezing(
            [
                {"at": 0, "train": {"projector": 1.0}},
                {"at": 0.25, "train": {"projector": 1.0, "language": 0.5}},
            ]
        )
        ends.append(fit(device, callbacks=[stages, ranks], enable_checkpointing=False)[0])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-6)
