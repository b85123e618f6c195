"""The load-balancing loss, against transformers' own, and the load of experts, against their choices."""

import csv
import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning_vlm_callbacks import GradNorm
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.losses.balance import LayerRouting, balance_loss
from lightning_vlm.models.experts import mixtures_of
from lightning_vlm.optim import Constant

FAMILY = "qwen3_vl_moe"
PLAN = {"language": {"lora": {"r": 4}}, "language.routers": "full"}
BOTH = {"language": "full", "language.routers": "full"}


@pytest.mark.parametrize("padded", [False, True])
def test_it_is_that_of_transformers(padded):
    """Value and gradient; theirs sums in float32 whatever it is given."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 7, 5)
    logits = [torch.randn(21, 5, generator=generator).double().requires_grad_() for _ in range(2)]
    mask = torch.ones(shape[:2], dtype=torch.int64)
    if padded:
        mask[0, :3] = mask[2, :5] = 0
    expected = load_balancing_loss_func(tuple(logits), 5, 2, mask if padded else None)
    wanted = torch.autograd.grad(expected, logits)
    real = mask.flatten().bool() if padded else None
    layers = [LayerRouting(one, one.topk(2).indices, real) for one in logits]
    found = balance_loss(layers)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)
    for one, other in zip(torch.autograd.grad(found, logits), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    if padded:  # what is padding changes nothing
        with torch.no_grad():
            changed = [one.where(real[:, None], 9 * one.flip(1)) for one in logits]
        layers = [LayerRouting(one, one.topk(2).indices, real) for one in changed]
        torch.testing.assert_close(balance_loss(layers), found.detach())


def test_it_may_be_of_one_token_or_of_none():
    """Of one it is the experts' number times the probabilities of those that are chosen."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    chosen = logits.topk(2).indices
    expected = 5 * logits[0].softmax(-1)[chosen[0]].sum()
    alone = LayerRouting(logits[:1], chosen[:1], None)
    padded = LayerRouting(logits, chosen, torch.tensor([True, False, False]))
    for layer in (alone, padded):
        torch.testing.assert_close(balance_loss([layer]), expected)
    for nothing in (LayerRouting(logits[:0], chosen[:0], None), padded._replace(real=torch.zeros(3).bool())):
        assert balance_loss([nothing]) == 0


class Watch(Callback):
    """Keeps what a step had: gradients before clipping, and the batch."""

    def __init__(self):
        self.gradients, self.batches = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append(
            {name: one.grad.clone() for name, one in module.named_parameters() if one.requires_grad}
        )


def fit(
    module, make_quiet, *, steps=1, batch_size=3, size=6, logger=False, callbacks=(), trainer=None, **options
):
    one = module(FAMILY, optimizer=None, schedule=Constant(), **{"adapt": PLAN, "clip": None, **options})
    watch = Watch()
    data = VLMDataModule(train=Drawn("train", size=size, tasks=["vqa"]), batch_size=batch_size, shuffle=False)
    make_quiet(max_steps=steps, callbacks=[*callbacks, watch], logger=logger, **trainer or {}).fit(one, data)
    return one, watch


def theirs(one, batch):
    """The load-balancing loss of a batch as the family's own class finds it."""
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    output = one.model(**inputs, output_router_logits=True, use_cache=False)
    return output.aux_loss


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_has_it_with_its_published_weight(module, make_quiet, checkpointing):
    """The gradient is that of the language loss and 0.001 times transformers' own loss, of two micro-batches
    that are weighted as in the language loss."""
    options = {"gradient_checkpointing": checkpointing}
    accumulate = {"accumulate_grad_batches": 2}
    _, with_loss = fit(module, make_quiet, trainer=accumulate, **options)
    _, without = fit(module, make_quiet, trainer=accumulate, router_aux_loss=False, **options)
    fresh = module(FAMILY, adapt=PLAN)
    total, weights = 0, 0
    for batch in with_loss.batches:
        weight = fresh.targets(batch).weights.sum()
        total = total + weight * theirs(fresh, batch)
        weights = weights + weight
    (0.001 * total / weights).backward()
    moved = 0
    for name, gradient in with_loss.gradients[0].items():
        change = gradient - without.gradients[0][name]
        expected = fresh.get_parameter(name).grad
        expected = torch.zeros_like(change) if expected is None else expected
        torch.testing.assert_close(change, expected, rtol=2e-2, atol=2e-7, msg=name)
        moved += expected.abs().max() > 1e-6
    assert moved >= 2


def test_what_is_logged(module, make_quiet, tmp_path):
    """The loss before its weight, and the load of the busiest expert of each layer, without padding."""
    logger = CSVLogger(tmp_path)
    _, watch = fit(module, make_quiet, logger=logger)
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    fresh = module(FAMILY, adapt=PLAN)
    (batch,) = watch.batches
    assert not batch.inputs["attention_mask"].all()
    metrics = {}
    for row in rows:
        metrics |= {name: float(value) for name, value in row.items() if value}
    assert metrics["train/aux_loss"] == pytest.approx(theirs(fresh, batch).item(), rel=1e-5)
    chosen = {}
    for place, mixture in enumerate(mixtures_of(fresh.model)):
        router = fresh.model.get_submodule(mixture.router_path)
        router.register_forward_hook(lambda _, __, output, place=place: chosen.update({place: output[2]}))
    theirs(fresh, batch)
    without = 0
    for place, choices in chosen.items():
        counts = (
            choices[batch.inputs["attention_mask"].flatten().bool()].flatten().bincount(minlength=4).float()
        )
        assert metrics[f"train/expert_load/{place}"] == pytest.approx((counts.max() / counts.mean()).item())
        without += int((counts == 0).sum())
    assert metrics["train/experts_without_tokens"] == without


class Keep(WandbLogger):
    """Keeps what would be sent to Weights & Biases."""

    def __init__(self, folder):
        super().__init__(save_dir=folder, offline=True)
        self.rows, self.tables = [], {}

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_table(self, key, columns, data):
        self.tables[key] = (columns, data)


def test_two_ranks_have_the_loss_and_the_load_of_one_process(module, make_quiet, tmp_path, on_two_ranks):
    """Gradients, and what is logged: two ranks of two micro-batches each, against four in one process."""

    def run(**trainer):
        logger = Keep(tmp_path)
        trainer |= {"log_every_n_steps": 2}
        one, watch = fit(module, make_quiet, size=12, steps=3, batch_size=1, logger=logger, trainer=trainer)
        logged = {}
        for step, metrics in logger.rows:
            found = {name: value for name, value in metrics.items() if "aux" in name or "expert" in name}
            logged |= {step: found} if found else {}
        weights = {name: weight.detach() for name, weight in one.named_parameters() if weight.requires_grad}
        return watch.gradients[0], weights, logged, logger.tables

    gradients, weights, logged, tables = run(accumulate_grad_batches=4)
    ranks = on_two_ranks(lambda: run(accumulate_grad_batches=2, strategy="ddp", devices=2))
    assert logged
    for found, after, _, _ in ranks:
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-7, msg=name)
            torch.testing.assert_close(after[name], weights[name], rtol=1e-3, atol=1e-5, msg=name)
    _, _, of_ranks, tables_of_ranks = ranks[0]
    assert of_ranks.keys() == logged.keys()
    for step, metrics in logged.items():
        assert of_ranks[step] == pytest.approx(metrics, rel=1e-5)
    columns, rows = tables["expert_load"]
    assert columns == ["layer", *(f"expert {number}" for number in range(4))]
    for row, other in zip(rows, tables_of_ranks["expert_load"][1], strict=True):
        assert other[0] == row[0]
        assert sum(row[1:]) == pytest.approx(1)
        assert other[1:] == pytest.approx(row[1:])


@pytest.mark.parametrize(
    ("family", "plan", "weight", "said"),
    [
        (FAMILY, PLAN, "auto", "routers train; the load-balancing loss is added, times 0.001"),
        (FAMILY, "lora", "auto", "LoRA of rank 8 in each; routers are frozen .* trains them.; no load-bal"),
        (
            FAMILY,
            "full",
            0.01,
            "they train in full; routers are frozen .*; the load-balancing loss is added, times",
        ),
        (
            "ernie4_5_vl_moe",
            {"language": "full", "language.routers": "full"},
            "auto",
            "learned biases balance",
        ),
    ],
)
def test_a_line_says_what_happens(module, make_quiet, caplog, family, plan, weight, said):
    one = module(family, adapt=plan, router_aux_loss=weight)
    data = VLMDataModule(train=Drawn("train", size=2, tasks=["vqa"]), batch_size=2)
    with caplog.at_level("INFO"):
        make_quiet(max_steps=1).fit(one, data)
    (line,) = [record.message for record in caplog.records if record.message.startswith("Experts: ")]
    assert re.search(said, line), line


def test_refusals(module, make_quiet):
    with pytest.raises(UserError, match="router_aux_loss: found 'much'; expected auto, false or a number"):
        module(FAMILY, router_aux_loss="much")
    data = VLMDataModule(train=Drawn("train", size=2, tasks=["vqa"]), batch_size=2)
    with pytest.raises(UserError, match=r"found 0\.1 for a model without experts"):
        make_quiet(max_steps=1).fit(module("qwen3_vl", router_aux_loss=0.1), data)
    with pytest.raises(UserError, match="GradNorm: found a load-balancing loss"):
        make_quiet(max_steps=1, callbacks=[GradNorm()]).fit(module(FAMILY, adapt=PLAN), data)
