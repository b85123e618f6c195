"""By how much pictures lower losses, against a model's own logits; and weights made of it."""

import csv

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger

from lightning_vlm import VisualGainWeights, VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import own_logits
from lightning_vlm.losses.visual_gain import visual_gain, without_pixels
from tests.support import tiny
from tests.support.ranks import DDP

FAMILIES = tuple(tiny.FAMILIES)
PLAN = {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}}


def awake(one):
    """Weights that don't all say the same."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return one


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gain_is_the_difference_of_two_losses(module, batch_of, family):
    one = awake(module(family))
    one.eval()
    batch = batch_of(one, Drawn("train", size=2))
    targets = one.targets(batch)
    with torch.no_grad():
        found = visual_gain(one.model, batch, targets)
        losses = []
        for shown in (batch, without_pixels(batch)):
            logits = own_logits(one.model, shown).flatten(0, 1)[targets.positions].float()
            losses.append(F.cross_entropy(logits, targets.labels, reduction="none"))
    torch.testing.assert_close(found.nats, losses[1] - losses[0], atol=1e-4, rtol=1e-3)
    assert found.nats.abs().max() > 1e-4
    assert found.seen.all()


def test_a_blank_picture_is_as_large_and_the_batch_stays_as_it_is(module, batch_of):
    batch = batch_of(module(), Drawn("train", size=2))
    blank = without_pixels(batch)
    changed = [name for name, value in batch.inputs.items() if not torch.equal(value, blank.inputs[name])]
    assert changed == ["pixel_values"]
    assert blank.inputs["pixel_values"].shape == batch.inputs["pixel_values"].shape
    assert blank.inputs["pixel_values"].abs().max() < 1e-3
    assert batch.inputs["pixel_values"].any()
    renamed = {"x": batch.inputs["pixel_values"]}
    with pytest.raises(UserError, match=r"found no pixels among the model's inputs \(x\)"):
        without_pixels(batch._replace(inputs=renamed))


class Kept(Callback):
    """Weights of tokens before and after, and the loss of each step."""

    def __init__(self):
        self.weights, self.random = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append(batch.targets.weights.clone())
        self.random.append(torch.get_rng_state())


def fit(one, make_quiet, source, gain=None, batch_size=4, **options):
    before, after = Kept(), Kept()
    seed_everything(1)
    callbacks = [before, *([gain] if gain else []), after]
    trainer = make_quiet(callbacks=callbacks, **{"max_epochs": 1, **options})
    batching = options.pop("batching", "padded")
    data = VLMDataModule(train=source, batch_size=batch_size, shuffle=False, batching=batching)
    trainer.fit(one, data)
    trained = {name: p.detach().clone() for name, p in one.named_parameters() if p.requires_grad}
    return before, after, trained


def test_weights_are_multiplied_and_nothing_else_changes(module, make_quiet, listed, words, tmp_path):
    """Words that no picture belongs to keep their weights; chance and modes are as without it."""
    source = listed([*Drawn("train", size=3), words()])
    plain, _, _ = fit(awake(module(adapt=PLAN)), make_quiet, source)
    gain = VisualGainWeights(least=0.25, full=0.5)
    one = awake(module(adapt=PLAN))
    before, after, _ = fit(one, make_quiet, source, gain, logger=CSVLogger(tmp_path))
    assert torch.equal(before.weights[0], plain.weights[0])
    assert torch.equal(after.random[0], before.random[0])
    factors = after.weights[0] / before.weights[0]
    answer = len(one.processor.tokenizer("Red.", add_special_tokens=False).input_ids)
    assert (factors[-answer:] == 1).all()
    assert factors.min() == 0.25
    assert factors.max() == 1
    assert ((factors > 0.25) & (factors < 1)).any()
    (file,) = tmp_path.rglob("metrics.csv")
    logged = next(row for row in csv.DictReader(file.open()) if row["visual_gain/factor"])
    assert float(logged["visual_gain/factor"]) == pytest.approx(factors.mean().item(), abs=1e-6)


def test_equal_factors_change_nothing(module, make_quiet):
    """Where no token reaches a share of its own, Σ wℓ / Σ w is the plain loss."""
    source = Drawn("train", size=4)
    _, _, plain = fit(module(adapt=PLAN), make_quiet, source)
    _, after, same = fit(module(adapt=PLAN), make_quiet, source, VisualGainWeights(0.5, full=1e9))
    assert after.weights[0].max() <= 1.0
    for name, value in plain.items():
        torch.testing.assert_close(same[name], value, atol=1e-6, rtol=1e-4)


def test_any_split_of_a_step_is_one_step(module, make_quiet, on_two_ranks):
    """In one batch, accumulated, and on two ranks."""
    source = Drawn("train", size=4)
    plan = {"projector": "full"}

    def trained(**options):
        one = awake(module(adapt=plan))
        return fit(one, make_quiet, source, VisualGainWeights(0.1, full=0.01), **options)[2]

    whole = trained()
    assert any(
        (whole[n] - p).abs().max() > 0 for n, p in awake(module(adapt=plan)).named_parameters() if n in whole
    )
    for found in (
        trained(batch_size=1, accumulate_grad_batches=4),
        *on_two_ranks(lambda: trained(batch_size=2, **DDP)),
    ):
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-3, msg=name)
