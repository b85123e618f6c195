"""What is logged is the true gradient of a whole step."""

import math
import os

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradientMonitor
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from tests.callbacks.gradient_monitor.support import (
    Kept,
    Plain,
    See,
    assert_close,
    assert_equal,
    flat_statistics,
    names_of,
    weights_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:GradientMonitor")


def plain_by_hand(samples, steps, clip, rate=0.1):
    """Statistics of each step of SGD on batches of 8, by torch.autograd and arithmetic."""
    model, found = Plain(), []
    for step in range(steps):
        pictures, labels = samples[8 * step : 8 * step + 8]
        loss = nn.functional.cross_entropy(model(pictures), labels)
        gradients = dict(
            zip(["stem", "head"], _pairs(torch.autograd.grad(loss, list(model.parameters()))), strict=True)
        )
        gradients["all"] = gradients["stem"] + gradients["head"]
        weights = {"stem": list(model.stem.parameters()), "head": list(model.head.parameters())}
        weights["all"] = weights["stem"] + weights["head"]
        scale = min(1.0, clip / flat_statistics(gradients["all"])["norm"])
        one = {}
        for name in gradients:
            one[name] = flat_statistics(gradients[name])
            one[name]["clipped_norm"] = scale * one[name]["norm"]
            weight = flat_statistics([w.detach() for w in weights[name]])["norm"]
            one[name]["update_ratio"] = rate * scale * one[name]["norm"] / weight
        found.append(one)
        with torch.no_grad():
            for weight, gradient in zip(weights["all"], gradients["all"], strict=True):
                weight -= rate * scale * gradient
    return found


def _pairs(items):
    return [list(items[:2]), list(items[2:])]


@pytest.mark.parametrize("batch", [8, 2])
def test_gradients_are_those_of_the_whole_step(fit, samples, batch):
    """Accumulated, before and after clipping."""
    trainer = fit(
        [GradientMonitor()],
        steps=3,
        data=DataLoader(samples, batch),
        accumulate_grad_batches=8 // batch,
        gradient_clip_val=0.5,
    )
    check_plain(trainer.logger, samples)


def check_plain(logger, samples):
    expected = plain_by_hand(samples, 3, clip=0.5)
    assert any(one["stem"]["zeros"] > 0.2 for one in expected)
    assert any(one["all"]["clipped_norm"] < 0.9 * one["all"]["norm"] for one in expected)
    for group in ("stem", "head", "all"):
        assert [step for step, _ in logger.of(group)] == [0, 1, 2]
        for step, found in logger.of(group):
            assert_close(found, expected[step][group])


def test_gradients_are_those_of_the_whole_step_on_two_ranks(fit, samples, on_two_ranks):
    def run():
        model = Plain()
        half = DistributedSampler(samples, 2, int(os.environ["RANK"]), shuffle=False)
        trainer = fit(
            [GradientMonitor()],
            model,
            3,
            DataLoader(samples, 4, sampler=half),
            gradient_clip_val=0.5,
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
        )
        return {"lines": trainer.logger.lines, "weights": weights_of(model)}

    first, second = on_two_ranks(run)
    logger = Kept()
    logger.lines = first["lines"]
    check_plain(logger, samples)
    assert_equal(first["weights"], second["weights"])


@pytest.fixture(scope="module")
def vlm(model_folder):
    """A VLM, all of it trained but the end of its tower, which LLaVA doesn't use and DDP would wait for."""

    def make():
        adapt = dict.fromkeys(["vision.layers[0:2]", "projector", "language", "head"], "full")
        made = VLMModule(str(model_folder("llava")), adapt=adapt, clip=0.05, chat_template="plain")
        made.configure_model()
        return made

    return make


def vlm_data(module, batch):
    source = Drawn("train", size=8)
    return VLMDataModule(train=source, batch_size=batch, shuffle=False, processor=module.processor)


@pytest.fixture(scope="module")
def vlm_expected(vlm):
    """By torch.autograd, of the mean loss over all tokens of one big batch."""
    module = vlm()
    sums = module.loss_sums(next(iter(vlm_data(module, 8).train_dataloader())))
    named = {name: one for name, one in module.model.named_parameters() if one.requires_grad}
    gradients = torch.autograd.grad(sums.loss_sum / sums.weight_sum, list(named.values()))
    found = dict(zip(named, gradients, strict=True))
    starts = {
        "vision": "model.vision_tower",
        "projector": "model.multi_modal_projector",
        "language": "model.language_model",
        "head": "lm_head",
        "all": "",
    }
    expected = {
        group: flat_statistics([one for name, one in found.items() if name.startswith(start)])
        for group, start in starts.items()
    }
    for one in expected.values():
        one["clipped_norm"] = one["norm"] * min(1, 0.05 / expected["all"]["norm"])
    assert expected["all"]["clipped_norm"] < expected["all"]["norm"]
    return expected


@pytest.mark.parametrize("split", ["8", "4×2", "2 ranks × 4"])
def test_gradients_of_a_vlm_are_those_of_the_whole_step(vlm, make_trainer, on_two_ranks, vlm_expected, split):
    """With the module's own normalisation and clipping; the groups are its parts."""

    def run(batch, **options):
        module, logger = vlm(), Kept()
        watched = GradientMonitor()
        given = {"logger": logger, "max_steps": 1, "callbacks": [watched], "use_distributed_sampler": False}
        make_trainer(**given, **options).fit(module, vlm_data(module, batch))
        return logger.lines

    logger = Kept()
    if split == "2 ranks × 4":
        logger.lines, _ = on_two_ranks(lambda: run(4, devices=2, strategy="ddp"))
    else:
        batch = {"8": 8, "4×2": 2}[split]
        logger.lines = run(batch, accumulate_grad_batches=8 // batch)
    assert names_of(logger) == ["vision", "projector", "language", "head", "all"]
    for group, expected in vlm_expected.items():
        ((step, found),) = logger.of(group)
        assert step == 0
        assert 0 <= found.pop("update_ratio") < 1  # the first rate of the warm-up may be 0
        assert found.pop("zeros") == pytest.approx(expected["zeros"], abs=1e-3)  # some are a rounding error
        assert_close(found, {name: x for name, x in expected.items() if name != "zeros"}, rel=1e-4)


def test_sparse_gradients_count_whole(fit):
    class Words(LightningModule):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return self.head(self.table(batch[0])).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = DataLoader(TensorDataset(torch.tensor([1, 2, 1])), 3)
    logger = fit([GradientMonitor()], Words(), 1, data).logger
    ((_, found),) = logger.of("table")
    assert found["zeros"] == pytest.approx(0.8)


def test_bf16_mixed(fit, classifier, digits):
    """Against gradients that another callback saw."""
    see = See()
    logger = fit([GradientMonitor(), see], classifier(), 2, digits.Digits(32), precision="bf16-mixed").logger
    for (_, found), gradients in zip(logger.of("all"), see.all, strict=True):
        expected = flat_statistics(gradients.values())
        assert_close({name: found[name] for name in expected}, expected)


def scaled_run(fit, scale, optimizer=None, **options):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    watched = GradientMonitor(**options)
    model = Plain(optimizer) if optimizer else Plain()
    return fit([watched], model, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]), watched, scaler


@pytest.mark.parametrize("on_anomaly", ["warn", "skip", "stop"])
def test_what_the_scaler_skips_is_no_anomaly(fit, samples, recwarn, on_anomaly):
    trainer, watched, scaler = scaled_run(fit, 2.0**20, on_anomaly=on_anomaly)
    assert trainer.global_step == 6
    norms = [found["norm"] for _, found in trainer.logger.of("all")]
    skipped = sum(not math.isfinite(norm) for norm in norms)
    assert 0 < skipped < 6
    assert scaler.get_scale() == 2.0 ** (20 - skipped)
    assert trainer.logger.of("all")[0][1]["update_ratio"] == 0
    model = Plain()  # of the first step that was made
    pictures, labels = samples[8 * (skipped % 3) : 8 * (skipped % 3) + 8]
    gradients = torch.autograd.grad(
        nn.functional.cross_entropy(model(pictures), labels), list(model.parameters())
    )
    assert norms[skipped] == pytest.approx(flat_statistics(gradients)["norm"], rel=1e-2)
    assert watched._watch.usual["all"].seen == 6 - skipped
    assert not [one for one in recwarn if "GradientMonitor" in str(one.message)]


def test_a_scaler_with_a_fused_optimizer_is_refused(fit):
    def fused(parameters):
        return torch.optim.AdamW(parameters, fused=True)

    with pytest.raises(MisconfigurationException, match="fused=False"):
        scaled_run(fit, 2.0, fused)
    assert fit([GradientMonitor()], Plain(fused), 1).global_step == 1
