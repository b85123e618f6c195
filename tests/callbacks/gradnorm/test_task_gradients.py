"""Gradients of tasks are autograd's, in one micro-batch, over several and over ranks."""

import copy

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradNorm, TaskWeights
from lightning_vlm_callbacks.gradnorm.task_gradients import TaskGradients
from torch import nn
from torch.utils.data import DataLoader

from tests.support.ranks import DDP
from tests.support.task_modules import Heads, Sorts, batches, data, one_by_one


@pytest.mark.parametrize("ckpt", [None, "non-reentrant", "reentrant"])
@pytest.mark.parametrize("frozen", [False, True])
def test_norms_are_autograds(fit, ckpt, frozen):
    module, dataset = Sorts(ckpt=ckpt), data()
    if frozen:
        module.blocks[1].down.weight.requires_grad_(False)
    keep = fit(module, GradNorm(), dataset)
    assert len(keep.norms) == 6
    for before, norms, batch in zip(keep.before, keep.norms, batches(dataset, 8), strict=True):
        model = Sorts()
        model.load_state_dict(before)
        torch.testing.assert_close(norms, one_by_one(model, batch), rtol=1e-5, atol=1e-7)
    assert keep.weights[-1][1] < keep.weights[-1][0] < keep.weights[-1][2]  # as 5, 1 and 0.2


def test_accumulated_is_one_batch(fit):
    """Matrices are added, not norms."""
    whole = fit(Sorts(), GradNorm(), batch=24)
    parts = fit(Sorts(), GradNorm(), batch=8, accumulate_grad_batches=3)
    for norms, other in zip(whole.norms, parts.norms[2::3], strict=True):
        torch.testing.assert_close(norms, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.weights[-1], parts.weights[-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("tasks", ["rows", "total"])
def test_two_ranks_are_one(make_trainer, on_two_ranks, tmp_path, tasks, accumulate):
    torch.manual_seed(0)
    dataset = data(48)

    def run(*two):
        gradnorm = GradNorm(layer=None if tasks == "rows" else "trunk[0]")
        module = Sorts() if tasks == "rows" else Heads()
        options = DDP if two else {}
        options |= {"default_root_dir": tmp_path, "accumulate_grad_batches": accumulate if two else 1}
        trainer = make_trainer(callbacks=[gradnorm], max_epochs=1, **options)
        order = torch.arange(48).view(4, 12)
        order = order.view(4 * accumulate, 2, -1)[:, trainer.global_rank] if two else order
        trainer.fit(module, DataLoader(dataset, batch_sampler=order.tolist()))
        return [gradnorm._statistics.norms, module.tasks.weights, gradnorm._statistics.losses]

    alone = run()
    first, second = on_two_ranks(run, 2)
    for mine, other, expected in zip(first, second, alone, strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_a_rank_without_a_task_hangs_nobody(make_trainer, on_two_ranks, tmp_path):
    def run():
        gradnorm, module = GradNorm(), Sorts()
        trainer = make_trainer(
            callbacks=[gradnorm],
            max_epochs=1,
            default_root_dir=tmp_path,
            **DDP,
        )
        mine = data(16, tasks=[(0, 1), (2,)][trainer.global_rank], seed=trainer.global_rank)
        trainer.fit(module, DataLoader(mine, 8))
        return [gradnorm._statistics.norms, module.tasks.weights, module.head.weight.data]

    first, second = on_two_ranks(run)
    for value, other in zip(first, second, strict=True):
        assert torch.equal(value, other)
    assert (first[0] > 0).all()


def test_mixed_precision_measures_the_same(fit):
    norms = [fit(Sorts(lr=0.0), GradNorm(), precision=p).norms[-1] for p in ("32-true", "bf16-mixed")]
    torch.testing.assert_close(norms[1], norms[0], rtol=0.03, atol=0)


@pytest.mark.parametrize("tasks", ["rows", "total"])
def test_a_scaled_loss_measures_the_same(fit, tasks):
    """As in float16, where a GradScaler multiplies the loss."""
    made, layer = (Heads, "trunk[0]") if tasks == "total" else (Sorts, None)
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=512.0))
    plain, scaled = (
        fit(
            made(),
            GradNorm(layer=layer),
            max_steps=1,
            accumulate_grad_batches=2,
            plugins=plugins,
        )
        for plugins in ([], [half])
    )
    torch.testing.assert_close(scaled.norms[1], plain.norms[1], rtol=0.03, atol=0)


def test_a_backward_under_autocast_rounds_nothing():
    layer, tasks = nn.Linear(64, 5, bias=False), TaskWeights(["a"])
    torch.manual_seed(0)
    x, dy = torch.randn(32, 64), torch.randn(32, 5).bfloat16()
    gradients = TaskGradients(layer, "layer", tasks)
    gradients.begin()
    tasks.rows = torch.zeros(32, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).backward(dy)
    torch.testing.assert_close(gradients.finish(1).matrices[0], dy.float().T @ x, rtol=1e-5, atol=1e-5)


def test_losses_of_tasks_that_share_inputs(fit):
    module, dataset = Heads(), data()
    keep = fit(module, GradNorm(layer="trunk[0]"), dataset, batch=8, accumulate_grad_batches=2)
    assert not module.tasks.on_losses
    for k in (1, 3, 5):
        model = Heads()
        model.load_state_dict(keep.before[k])
        rows = dataset[8 * k - 8 : 8 * k + 8]
        losses = model.losses(rows)
        expected = [
            torch.autograd.grad(loss, model.trunk[0].weight, retain_graph=True)[0].norm()
            for loss in losses.values()
        ]
        torch.testing.assert_close(keep.norms[k], torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert keep.weights[-1][1] < 0.8 < keep.weights[-1][0]


def test_rows_of_no_task(fit):
    """They train, and count for none; a step of nothing but them is no mistake."""

    class Some(Sorts):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                self.tasks.rows = torch.full_like(batch[2], -1)
                return self.head.bias.sum()
            ids = self.tasks.rows = torch.where(batch[2] == 2, -1, batch[2])
            losses = self.losses(batch)
            self.tasks.add_rows(losses.detach()[ids >= 0], ids[ids >= 0])
            return losses.mean()

    keep = fit(Some(lr=0.0), GradNorm(), max_steps=2)
    assert keep.norms[1][2].isnan()
    assert keep.weights[1][2] == 1.0
    expected = one_by_one(Sorts(), data()[:8])
    torch.testing.assert_close(keep.norms[1][:2], expected[:2], rtol=1e-5, atol=1e-7)


def test_a_module_that_divides_by_itself(fit):
    """Norms are of the loss as the optimizer has it."""

    class Sums(Sorts):
        def training_step(self, batch, batch_idx):
            self.tasks.scale.fill_(1 / len(batch[2]))
            return super().training_step(batch, batch_idx) * len(batch[2])

    plain, sums = (fit(made(lr=0.0), GradNorm(), max_steps=2) for made in (Sorts, Sums))
    torch.testing.assert_close(sums.norms[1], plain.norms[1], rtol=1e-5, atol=0)


def test_rows_of_tokens_are_split_by_task():
    """A row that belongs to no task is left out."""
    torch.manual_seed(0)
    layer, tasks = nn.Linear(6, 2, bias=False), TaskWeights(["a", "b"])
    gradients = TaskGradients(layer, "layer", tasks)
    gradients.begin()
    tasks.rows = torch.tensor([0, 1, -1, 0])
    x, dy = torch.randn(4, 3, 6), torch.randn(4, 3, 2)
    layer(x).backward(dy)
    first = dy[0].T @ x[0] + dy[3].T @ x[3]
    second = dy[1].T @ x[1]
    torch.testing.assert_close(gradients.finish(1).matrices, torch.stack([first, second]))


def test_tokens_of_samples_that_share_a_row_are_split_by_task():
    """Against autograd of each task's loss alone; two micro-batches, of which the second has one task."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2, bias=False))
    plain = copy.deepcopy(net)
    tasks = TaskWeights(["a", "b", "c"])
    gradients = TaskGradients(net[2], "net[2]", tasks)
    gradients.begin()
    expected = torch.zeros(3, 2, 5)
    for of_tokens in ([1, 1, 1, 0, 0, -1, 1, 2], [2] * 8):
        tasks.rows = torch.tensor([of_tokens])
        x = torch.randn(1, 8, 6)
        for task in range(3):
            loss = plain(x).square().sum(2)[tasks.rows == task].sum()
            expected[task] += torch.autograd.grad(loss, plain[2].weight)[0]
        net(x).square().sum().backward()
    torch.testing.assert_close(gradients.finish(1).matrices, expected)


@pytest.mark.parametrize("shape", [(1, 5, 6), (8, 6), (1, 4, 8, 6), (2, 4, 6)])
def test_a_layer_whose_inputs_are_no_tokens_cant_be_split_by_tokens(shape):
    """Such as one of a vision tower, whose patches aren't the text's."""
    layer, tasks = nn.Linear(6, 2), TaskWeights(["a", "b"])
    gradients = TaskGradients(layer, "tower", tasks)
    gradients.begin()
    tasks.rows = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 1]])
    with pytest.raises(
        MisconfigurationException, match=r"tasks of rows \[1, 8\]; expected a layer whose inp"
    ):
        layer(torch.randn(shape)).sum().backward()


def test_a_total_without_a_task():
    tasks = TaskWeights(["a", "b", "c"], [0.5, 1.0, 1.5])
    for _ in range(2):
        assert tasks.total({"c": torch.tensor(2.0), "a": torch.tensor(4.0)}) == 5.0
    sums, counts = tasks.take()
    assert sums.tolist() == [8.0, 0.0, 4.0]
    assert counts.tolist() == [2.0, 0.0, 2.0]


def test_a_layer_may_get_narrower_between_steps():
    """As LoRA layers whose rank adapts."""
    layer, tasks = nn.Linear(64, 5, bias=False), TaskWeights(["a"])
    gradients = TaskGradients(layer, "layer", tasks)
    for wide in (64, 32, 8):
        layer.weight = nn.Parameter(layer.weight.detach()[:, :wide])
        layer.in_features = wide
        tasks.rows = torch.zeros(4, dtype=torch.int64)
        gradients.begin()
        layer(torch.randn(4, wide)).sum().backward()
        assert gradients.finish(1).matrices.shape == (1, 5, wide)


def test_losses_of_a_layer_in_half_precision_are_added_up_in_whole():
    torch.manual_seed(0)
    layer, tasks = nn.Linear(8, 4, bias=False).bfloat16(), TaskWeights(["a"])
    gradients = TaskGradients(layer, "layer", tasks)
    gradients.begin(accumulate=2)
    expected = torch.zeros(4, 8)
    for x in torch.randn(2, 16, 8).bfloat16():
        loss = layer(x).float().square().mean()
        expected += torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].float() / 2
        tasks.total({"a": loss})
    assert torch.equal(gradients.finish(1).matrices[0], expected)


def test_a_loss_that_the_layer_has_no_part_in(fit):
    class Apart(Heads):
        def losses(self, batch):
            losses = super().losses(batch)
            constant = self.global_step == 0
            return {**losses, "b": torch.ones(()) if constant else (self.b.bias - 1).square().sum()}

    keep = fit(Apart(), GradNorm(layer="trunk[0]"), max_steps=2)
    assert keep.norms[1].tolist() == [pytest.approx(keep.norms[1][0].item()), 0.0]
    assert keep.weights[1].tolist() == [1.0, 1.0]
