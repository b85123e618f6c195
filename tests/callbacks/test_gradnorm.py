"""GradNorm: gradients of tasks as autograd has them; weights as the paper's equations want them."""

import copy
import csv
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradNorm, StagedUnfreezing, TaskWeights
from lightning_vlm_callbacks.gradnorm.solver import closed_form, paper, relative_rates, weight_gradient
from lightning_vlm_callbacks.gradnorm.task_gradients import TaskGradients
from lightning_vlm_callbacks.selectors import SelectorError
from lightning_vlm_callbacks.task_weights import InitialLosses
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

TASKS = ("near", "far", "odd")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Sorts(LightningModule):
    """Regression; each sample belongs to one task, whose losses have another size."""

    def __init__(self, scales=(1.0, 5.0, 0.2), ckpt=None, lr=0.02, adam=False):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, 2)
        self.tasks = TaskWeights(TASKS)
        self.register_buffer("scales", torch.tensor(scales))
        self.ckpt, self.lr, self.adam = ckpt, lr, adam

    def forward(self, x):
        for block in self.blocks:
            if self.ckpt is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.ckpt == "reentrant")
        return self.head(x)

    def losses(self, batch):
        x, y, ids = batch
        return (self(x) - y).square().sum(1) * self.scales[ids]

    def training_step(self, batch, batch_idx):
        ids = batch[2]
        self.tasks.rows = ids
        losses = self.losses((batch[0].requires_grad_(), *batch[1:]))
        self.tasks.add_rows(losses.detach(), ids)
        return (self.tasks.weights[ids] * losses).mean()

    def configure_optimizers(self):
        return (torch.optim.Adam if self.adam else torch.optim.SGD)(self.parameters(), lr=self.lr)


class Heads(LightningModule):
    """Two heads on one trunk."""

    def __init__(self, scale=10.0):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.a, self.b = nn.Linear(8, 2), nn.Linear(8, 2)
        self.tasks = TaskWeights(["a", "b"])
        self.scale = scale

    def losses(self, batch):
        x, y, _ = batch
        h = self.trunk(x)
        return {"a": (self.a(h) - y).square().mean(), "b": self.scale * (self.b(h) + y).square().mean()}

    def training_step(self, batch, batch_idx):
        return self.tasks.total(self.losses(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


class Keep(Callback):
    """What GradNorm measured in each step, and the weights after it."""

    def __init__(self, gradnorm):
        self.gradnorm, self.norms, self.weights, self.before, self.rates = gradnorm, [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.module = copy.deepcopy(pl_module)
        self.before.append(self.module.state_dict())

    def on_train_batch_end(self, trainer, *_):
        self.norms.append(self.gradnorm._statistics.norms.clone())
        self.weights.append(self.gradnorm._tasks.weights.clone())


def data(size=48, tasks=(0, 1, 2), seed=0):
    torch.manual_seed(seed)
    x = torch.randn(size, 6)
    ids = torch.tensor(tasks)[torch.arange(size) % len(tasks)]
    y = torch.stack([x[:, 0] * (ids + 1), x[:, 1] - ids], 1)
    return TensorDataset(x, y, ids)


@pytest.fixture
def fit(make_trainer, tmp_path):
    def make(module, gradnorm, dataset=None, batch=8, ckpt_path=None, callbacks=(), **options):
        keep = Keep(gradnorm)
        given = {"max_epochs": 1, "default_root_dir": tmp_path, **options}
        trainer = make_trainer(callbacks=[gradnorm, keep, *callbacks], **given)
        trainer.fit(module, DataLoader(dataset or data(), batch), ckpt_path=ckpt_path)
        return keep

    return make


def quiet(**options):
    return GradNorm(**{**options})


# The equations


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.floats(0, 2), st.integers(0, 9))
def test_the_gradient_of_the_papers_loss_needs_no_second_graph(norms, alpha, seed):
    """As autograd has it through the norm of a gradient, with create_graph."""
    torch.manual_seed(seed)
    tasks = len(norms)
    shared = torch.randn(5, dtype=torch.float64, requires_grad=True)
    losses = [scale * (torch.randn(5, dtype=torch.float64) * shared).sin().sum() for scale in norms]
    weights = torch.rand(tasks, dtype=torch.float64).add(0.1).requires_grad_()
    rates = torch.rand(tasks, dtype=torch.float64) + 0.5
    of_each = torch.stack(
        [
            torch.autograd.grad(weights[i] * loss, shared, create_graph=True)[0].norm()
            for i, loss in enumerate(losses)
        ]
    )
    target = (of_each.mean() * rates**alpha).detach()
    (expected,) = torch.autograd.grad((of_each - target).abs().sum(), weights)
    found = weight_gradient(weights.detach(), (of_each / weights).detach(), rates, alpha)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.03, 30), st.floats(0.3, 3)), min_size=2, max_size=6), st.floats(0, 2))
def test_the_closed_form_is_where_every_norm_has_its_share(tasks, alpha):
    norms, rates = torch.tensor(tasks, dtype=torch.float64).T
    ones = torch.ones_like(norms)
    at_once = closed_form(ones, norms, rates, ones > 0, alpha, rate=1.0)
    share = at_once * norms / rates**alpha
    torch.testing.assert_close(share, share[:1].expand_as(share), rtol=1e-9, atol=0)
    assert at_once.sum().item() == pytest.approx(len(norms))
    torch.testing.assert_close(closed_form(at_once, norms, rates, ones > 0, alpha, 0.3), at_once)
    slowly = ones
    for _ in range(300):
        slowly = closed_form(slowly, norms, rates, ones > 0, alpha, rate=0.1)
    torch.testing.assert_close(slowly, at_once, rtol=1e-6, atol=0)
    if alpha == 0:
        torch.testing.assert_close((at_once * norms).std(), torch.zeros(()).double(), rtol=0, atol=1e-9)


def test_a_step_of_the_papers_by_hand():
    """Gradient descent in log w, where the slope of a task is w ∂/∂w, here in units of the mean norm 15."""
    weights, norms, ones = torch.tensor([1.5, 0.5]), torch.tensor([4.0, 48.0]), torch.ones(2)
    slopes = torch.tensor([-6.0 / 15, 1.0])  # that of the second, 24 / 15, is held at 1
    moved = weights * torch.exp(-0.3 * slopes)
    found = paper(weights, norms, ones, ones > 0, alpha=0.7, rate=0.3)
    torch.testing.assert_close(found, 2 * moved / moved.sum())


def test_weights_stay_where_numbers_are_too_small_to_move_them():
    weights, tiny = torch.tensor([1.5, 0.5]), torch.full((2,), 1e-8)
    assert torch.equal(closed_form(weights, torch.full((2,), 1e38), tiny, tiny > 0, 1.5, 0.5), weights)


@pytest.mark.parametrize("solver", [closed_form, paper])
def test_no_weight_ends_at_0(solver):
    """From there it would never come back."""
    weights, ones = torch.ones(2), torch.ones(2)
    for _ in range(400):
        weights = solver(weights, torch.tensor([1.0, 1e12]), ones, ones > 0, 1.0, 0.5)
    assert weights[1] == pytest.approx(1e-6)
    for _ in range(400):
        weights = solver(weights, torch.tensor([1.0, 0.1]), ones, ones > 0, 1.0, 0.1)
    assert weights[1] > weights[0]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_papers_steps_end_where_the_closed_form_is(alpha):
    norms, rates = torch.tensor([0.3, 2.0, 40.0]), torch.tensor([0.5, 1.0, 1.5])
    ones = torch.ones(3)
    weights = ones
    for _ in range(4000):
        weights = paper(weights, norms, rates, ones > 0, alpha, rate=0.005)
    expected = closed_form(ones, norms, rates, ones > 0, alpha, rate=1.0)
    torch.testing.assert_close(weights, expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("solver", [closed_form, paper])
def test_what_is_not_known_keeps_its_weight(solver):
    weights, known = torch.tensor([0.5, 1.5, 1.0]), torch.tensor([True, False, True])
    norms = torch.tensor([1.0, torch.nan, 8.0])
    rates = relative_rates(torch.tensor([1.0, torch.nan, 1.0]), torch.tensor([2.0, torch.nan, 1.0]), known)
    moved = solver(weights, norms, rates, known, 1.0, 0.5)
    assert moved[1] == 1.5
    assert moved[0] > 0.5
    assert moved.sum().item() == pytest.approx(3.0)
    nothing = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(solver(weights, norms, torch.ones(3), nothing, 1.0, 0.5), weights)


def test_rates_by_hand():
    known = torch.tensor([True, True, False])
    found = relative_rates(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([4.0, 4.0, 1.0]), known)
    assert found.tolist() == [0.5, 1.5, 1.0]


def test_a_loss_of_0_or_below_is_no_end():
    """Its rate is small, and a power of it a number; a first loss of 0 can't be divided by."""
    losses, ones = torch.tensor([0.0, -1.0, 1.0]), torch.ones(3)
    rates = relative_rates(losses, ones, ones > 0)
    assert (rates**1.5 > 0).all()
    initial = InitialLosses(3, 1)
    initial.add(losses, ones > 0)
    assert initial.known.tolist() == [False, False, True]


# Gradients from one backward


def one_by_one(module, batch, layer="blocks.1.down"):
    """Norm of the gradient of each task's part of the mean loss, before weights, by a backward each."""
    module = copy.deepcopy(module)
    module.ckpt = None
    ids, weight = batch[2], module.get_submodule(layer).weight
    losses = module.losses(batch)
    norms = []
    for task in range(len(TASKS)):
        mine = (losses * (ids == task)).sum() / len(losses)
        (gradient,) = torch.autograd.grad(mine, weight, retain_graph=True)
        norms.append(gradient.norm())
    return torch.stack(norms)


def batches(dataset, size):
    return [dataset[start : start + size] for start in range(0, len(dataset), size)]


@pytest.mark.parametrize("ckpt", [None, "non-reentrant", "reentrant"])
@pytest.mark.parametrize("frozen", [False, True])
def test_norms_are_autograds(fit, ckpt, frozen):
    module, dataset = Sorts(ckpt=ckpt), data()
    if frozen:
        module.blocks[1].down.weight.requires_grad_(False)
    keep = fit(module, quiet(), dataset)
    assert len(keep.norms) == 6
    for before, norms, batch in zip(keep.before, keep.norms, batches(dataset, 8), strict=True):
        model = Sorts()
        model.load_state_dict(before)
        torch.testing.assert_close(norms, one_by_one(model, batch), rtol=1e-5, atol=1e-7)
    assert keep.weights[-1][1] < keep.weights[-1][0] < keep.weights[-1][2]  # as 5, 1 and 0.2


def test_weights_follow_the_equations_step_by_step(fit, monkeypatch):
    """The whole recurrence once more, from autograd's norms; L(0) is the mean of the first two losses."""
    monkeypatch.setattr("lightning_vlm_callbacks.gradnorm.statistics._INITIAL_STEPS", 2)
    module, dataset = Sorts(), data()
    keep = fit(module, quiet(alpha=0.7, rate=0.3), dataset)
    weights, sums, steps = torch.ones(3), torch.zeros(3), 0
    for before, after, batch in zip(keep.before, keep.weights, batches(dataset, 8), strict=True):
        model = Sorts()
        model.load_state_dict(before)
        assert torch.allclose(model.tasks.weights, weights, rtol=1e-5)
        with torch.no_grad():
            each = model.losses(batch)
        losses = torch.stack([each[batch[2] == task].mean() for task in range(3)])
        if steps < 2:
            sums, steps = sums + losses, steps + 1
        share = losses / (sums / steps)
        rates = share / share.mean()
        aim = rates**0.7 / one_by_one(model, batch)
        aim = 3 * aim / aim.sum()
        weights = weights * (aim / weights) ** 0.3
        weights = 3 * weights / weights.sum()
        torch.testing.assert_close(after, weights, rtol=1e-4, atol=1e-6)


def test_accumulated_is_one_batch(fit):
    """Matrices are added, not norms."""
    whole = fit(Sorts(), quiet(), batch=24)
    parts = fit(Sorts(), quiet(), batch=8, accumulate_grad_batches=3)
    for one, other in zip(whole.norms, parts.norms[2::3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.weights[-1], parts.weights[-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("tasks", ["rows", "total"])
def test_two_ranks_are_one(make_trainer, on_two_ranks, tmp_path, tasks, accumulate):
    torch.manual_seed(0)
    dataset = data(48)

    def run(*two):
        gradnorm = quiet(layer=None if tasks == "rows" else "trunk[0]")
        module = Sorts() if tasks == "rows" else Heads()
        options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False} if two else {}
        options |= {"default_root_dir": tmp_path, "accumulate_grad_batches": accumulate if two else 1}
        trainer = make_trainer(callbacks=[gradnorm], max_epochs=1, **options)
        order = torch.arange(48).view(4, 12)
        order = order.view(4 * accumulate, 2, -1)[:, trainer.global_rank] if two else order
        trainer.fit(module, DataLoader(dataset, batch_sampler=order.tolist()))
        return [gradnorm._statistics.norms, module.tasks.weights, gradnorm._statistics.losses]

    one = run()
    first, second = on_two_ranks(run, 2)
    for mine, other, alone in zip(first, second, one, strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-6)


def test_a_rank_without_a_task_hangs_nobody(make_trainer, on_two_ranks, tmp_path):
    def run():
        gradnorm, module = quiet(), Sorts()
        trainer = make_trainer(
            callbacks=[gradnorm],
            max_epochs=1,
            default_root_dir=tmp_path,
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
        )
        mine = data(16, tasks=[(0, 1), (2,)][trainer.global_rank], seed=trainer.global_rank)
        trainer.fit(module, DataLoader(mine, 8))
        return [gradnorm._statistics.norms, module.tasks.weights, module.head.weight.data]

    first, second = on_two_ranks(run)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert (first[0] > 0).all()


def test_the_scale_of_a_loss_cancels(fit):
    """Loss i times s: its weight over s, and the same training; L(t)/L(0) has no scale."""
    plain = fit(Sorts((1.0, 1.0, 1.0)), quiet(rate=1.0), max_steps=1)
    scaled = fit(Sorts((1.0, 100.0, 0.1)), quiet(rate=1.0), max_steps=1)
    expected = plain.weights[0] / torch.tensor([1.0, 100.0, 0.1])
    torch.testing.assert_close(scaled.weights[0], 3 * expected / expected.sum(), rtol=1e-4, atol=0)


def test_alpha_0_makes_norms_equal(fit):
    keep = fit(Sorts(lr=0.0), quiet(alpha=0.0, rate=1.0), batch=48, max_steps=1)
    weighted = keep.weights[-1] * keep.norms[-1]
    torch.testing.assert_close(weighted, weighted.mean().expand(3), rtol=1e-5, atol=0)


def test_mixed_precision_measures_the_same(fit):
    norms = [fit(Sorts(lr=0.0), quiet(), precision=p).norms[-1] for p in ("32-true", "bf16-mixed")]
    torch.testing.assert_close(norms[1], norms[0], rtol=0.03, atol=0)


@pytest.mark.parametrize("tasks", ["rows", "total"])
def test_a_scaled_loss_measures_the_same(fit, tasks):
    """As in float16, where a GradScaler multiplies the loss."""
    made, layer = (Heads, "trunk[0]") if tasks == "total" else (Sorts, None)
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=512.0))
    plain, scaled = (
        fit(
            made(),
            quiet(layer=layer),
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
    keep = fit(module, quiet(layer="trunk[0]"), dataset, batch=8, accumulate_grad_batches=2)
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


def test_every_n_steps_and_absent_tasks(fit):
    """A task that isn't there keeps its norm; what has never been there keeps its weight."""
    module = Sorts()
    both = data(24, tasks=(0, 1)) + data(24, tasks=(0,))
    keep = fit(module, quiet(every_n_steps=2), both)
    assert torch.equal(keep.weights[0], keep.weights[1])
    assert not torch.equal(keep.weights[1], keep.weights[2])
    assert [one[2].item() for one in keep.weights] == [1.0] * 6
    assert keep.norms[4][1] == keep.norms[3][1] > 0
    assert torch.isfinite(keep.gradnorm._statistics.losses[:2]).all()
    assert keep.weights[4][1] != keep.weights[3][1]  # on its way to where its last norm and loss want it
    assert all(one.sum().item() == pytest.approx(3.0) for one in keep.weights)


def test_given_weights_are_a_start(fit):
    """With the sum that they should have, from the first step on, whatever has been seen by then."""
    module = Sorts()
    module.tasks = TaskWeights(TASKS, [6.0, 2.0, 4.0])
    keep = fit(module, quiet(), data(16, tasks=(0, 1)))
    assert keep.before[0]["tasks.weights"].tolist() == [1.5, 0.5, 1.0]
    assert [one[2].item() for one in keep.weights] == [1.0, 1.0]
    assert all(one.sum().item() == pytest.approx(3.0) for one in keep.weights)


def test_a_task_that_is_solved_makes_no_nan(fit):
    keep = fit(Sorts(scales=(1.0, 0.0, 1.0)), quiet())
    assert torch.isfinite(torch.stack(keep.weights)).all()
    assert keep.weights[-1][1] == 1.0
    losing = fit(Sorts(scales=(1.0, 1e-30, 1.0)), quiet(rate=1.0))
    assert torch.isfinite(torch.stack(losing.weights)).all()
    assert (torch.stack(losing.weights) > 0).all()


def test_a_step_that_is_not_finite_changes_nothing(fit):
    dataset = data()
    dataset.tensors[1][20:22] = math.inf
    keep = fit(Sorts(lr=0.0), quiet(), dataset)
    poisoned = torch.stack(keep.weights)
    assert torch.isfinite(poisoned).all()
    assert torch.isfinite(keep.norms[-1]).all()


@pytest.mark.parametrize("broken", ["gradient", "loss"])
def test_what_is_broken_in_part_is_left_out(fit, broken):
    class Breaks(Sorts):
        def losses(self, batch):
            losses = super().losses(batch)
            if broken == "gradient" and self.global_step == 1:
                return losses + torch.where(batch[2] == 2, (losses * 0).sqrt(), 0)
            return losses

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if broken == "loss" and self.global_step == 1:
                self.tasks.add_rows(torch.tensor([math.inf]), torch.tensor([2]))
            return loss

    keep = fit(Breaks(), quiet(), max_steps=2)
    assert keep.norms[1][2] == keep.norms[0][2]
    for values in (keep.norms[1], keep.gradnorm._statistics.losses, keep.weights[1]):
        assert torch.isfinite(values).all()


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

    keep = fit(Some(lr=0.0), quiet(), max_steps=2)
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

    plain, sums = (fit(made(lr=0.0), quiet(), max_steps=2) for made in (Sorts, Sums))
    torch.testing.assert_close(sums.norms[1], plain.norms[1], rtol=1e-5, atol=0)


# Options


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

    keep = fit(Apart(), quiet(layer="trunk[0]"), max_steps=2)
    assert keep.norms[1].tolist() == [pytest.approx(keep.norms[1][0].item()), 0.0]
    assert keep.weights[1].tolist() == [1.0, 1.0]


def test_the_default_layer(fit):
    keep = fit(Sorts(), quiet(), max_steps=1)
    assert keep.gradnorm.layer is None

    class Lora(Sorts):
        def __init__(self):
            super().__init__()
            from peft import LoraConfig, inject_adapter_in_model

            inject_adapter_in_model(LoraConfig(r=2, target_modules=["down"]), self)

    half, frozen, seen = Lora(), Lora(), []
    half.blocks[1].requires_grad_(False)
    frozen.blocks.requires_grad_(False)
    for module in (Lora(), half, frozen, Sorts()):
        fit(module, quiet(), callbacks=[See(seen)], max_steps=1)
    assert seen == [
        "blocks.1.down.lora_B.default",
        "blocks.0.down.lora_B.default",
        "blocks.1.down.base_layer",
        "blocks.1.down",
    ]


class See(Callback):
    """The layer that is watched."""

    def __init__(self, seen):
        self.seen = seen

    def on_train_batch_end(self, trainer, *_):
        (gradnorm,) = (one for one in trainer.callbacks if isinstance(one, GradNorm))
        self.seen.append(gradnorm._gradients.name)


# Runs


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path):
    class Forgets(Sorts):
        """After the first epoch one task is all there is, so what is known of the others is in the state."""

        def training_step(self, batch, batch_idx):
            kept = batch[2] >= (0 if self.current_epoch == 0 else 2)
            return super().training_step([one[kept] for one in batch], batch_idx)

    def run(folder):
        module, gradnorm = Forgets(adam=True), quiet(every_n_steps=2)
        saves = ModelCheckpoint(tmp_path / folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")
        trainer = make_trainer(
            callbacks=[gradnorm, saves],
            enable_checkpointing=True,
            max_epochs=2,
            default_root_dir=tmp_path,
            accumulate_grad_batches=2,
        )
        return module, gradnorm, trainer

    loader = DataLoader(data(64), 8)
    module, gradnorm, trainer = run("whole")
    trainer.fit(module, loader)
    again, resumed, trainer = run("again")
    trainer.fit(again, loader, ckpt_path=tmp_path / "whole" / "step=4.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    whole, other = gradnorm._statistics.state_dict(), resumed._statistics.state_dict()
    assert (whole["norms"] > 0).all()
    for key in ("norms", "losses"):
        assert torch.equal(whole[key], other[key])
    assert torch.equal(whole["initial"]["sums"], other["initial"]["sums"])
    assert vars(gradnorm._history) == vars(resumed._history)
    assert (module.tasks.weights != 1).all()


def test_a_run_resumed_in_a_later_stage_measures_the_same_layer(make_trainer, tmp_path):
    """Which layer is taken depends on what trains when the run begins: then only block 0, later both."""

    class Lora(Sorts):
        def __init__(self):
            super().__init__(adam=True)
            from peft import LoraConfig, inject_adapter_in_model

            inject_adapter_in_model(LoraConfig(r=2, target_modules=["down"]), self)
            self.head.requires_grad_(True)

    def run(folder, ckpt_path=None):
        module, gradnorm, seen = Lora(), quiet(), []
        stages = [{"at": 0, "train": {"blocks.0": 1.0}}, {"at": 3, "train": {"*": 1.0}}]
        saves = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = make_trainer(
            callbacks=[StagedUnfreezing(stages, unit="step"), gradnorm, See(seen), saves],
            enable_checkpointing=True,
            max_epochs=3,
        )
        trainer.fit(module, DataLoader(data(16), 8), ckpt_path=ckpt_path)
        return module.state_dict(), set(seen)

    expected, measured = run("whole")
    resumed, again = run("again", tmp_path / "whole" / "step=4.ckpt")
    assert measured == again == {"blocks.0.down.lora_B.default"}
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


def test_a_checkpoint_of_other_tasks_is_refused(fit, tmp_path):
    class Other(Sorts):
        def __init__(self):
            super().__init__()
            self.tasks = TaskWeights(["near", "far", "new"])

    saves = ModelCheckpoint(tmp_path / "saved", filename="last")
    fit(Sorts(), quiet(), callbacks=[saves], enable_checkpointing=True)
    with pytest.raises(MisconfigurationException, match="found tasks near, far, new, but the checkpoint has"):
        fit(Other(), quiet(), max_epochs=2, ckpt_path=tmp_path / "saved" / "last.ckpt")


def test_logs_and_picture(fit, tmp_path, monkeypatch):
    logger, wandb, sent = (
        CSVLogger(tmp_path, name="", version="run"),
        WandbLogger(offline=True, save_dir=tmp_path),
        [],
    )
    log = wandb.experiment.log  # of a real run
    monkeypatch.setattr(
        wandb.experiment, "log", lambda values, **options: (sent.append(values), log(values, **options))
    )
    fit(Sorts(), GradNorm(), logger=[logger, wandb], log_every_n_steps=2)
    wandb.experiment.finish()
    assert [one["trainer/global_step"] for one in sent if "gradnorm/weight/near" in one] == [1, 3, 5]
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("gradnorm/weight/near")]
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    assert {key for key in rows[0] if key.startswith("gradnorm/")} == {
        *(
            f"gradnorm/{kind}/{task}"
            for kind in ("weight", "norm", "weighted_norm", "rate")
            for task in TASKS
        ),
        *(f"gradnorm/cosine/{pair}" for pair in ("near-far", "near-odd", "far-odd")),
    }
    assert -1 <= float(rows[0]["gradnorm/cosine/near-far"]) <= 1


def test_what_is_logged_is_of_its_step(fit, tmp_path):
    """Weights as they were in it, and cosines as autograd has them; nothing of a task that never was."""
    logger, dataset = CSVLogger(tmp_path, name="", version="run"), data(48, tasks=(1, 2))
    keep = fit(Sorts(), quiet(every_n_steps=2), dataset, logger=logger, log_every_n_steps=2)
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    assert {key for key in rows[0] if "near" in key} == {"gradnorm/weight/near", "gradnorm/rate/near"}
    for row in rows:
        step = int(row["step"])
        model, batch = Sorts(), dataset[8 * step : 8 * step + 8]
        model.load_state_dict(keep.before[step])
        far, odd = (
            torch.autograd.grad(model.losses(batch)[batch[2] == task].sum(), model.blocks[1].down.weight)[0]
            for task in (1, 2)
        )
        cosine = torch.cosine_similarity(far.flatten(), odd.flatten(), dim=0)
        assert float(row["gradnorm/cosine/far-odd"]) == pytest.approx(cosine.item(), rel=1e-3)
        for task, name in ((1, "far"), (2, "odd")):
            weight = keep.before[step]["tasks.weights"][task].item()
            norm = keep.norms[step][task].item()
            assert float(row[f"gradnorm/weight/{name}"]) == pytest.approx(weight)
            assert float(row[f"gradnorm/norm/{name}"]) == pytest.approx(norm)
            assert float(row[f"gradnorm/weighted_norm/{name}"]) == pytest.approx(weight * norm)


class Stops(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True


class Fails(Sorts):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        raise RuntimeError("as it happens")


def test_the_hooks_are_gone_after_the_fit(fit):
    """Also where it ends in the middle of a step."""
    whole, stopped, failed = Sorts(), Sorts(), Fails()
    fit(whole, quiet(), max_steps=2)
    fit(stopped, quiet(), callbacks=[Stops()], accumulate_grad_batches=3)
    with pytest.raises(RuntimeError, match="as it happens"):
        fit(failed, quiet())
    for module in (whole, stopped, failed):
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
        assert module.tasks.on_losses is None


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "adam"}, "solver: found 'adam'; expected closed_form or paper"),
        ({"alpha": -1.0}, "alpha: found -1.0; expected a number >= 0"),
        ({"rate": 0.0}, "rate: found 0.0"),
        ({"every_n_steps": 0}, "every_n_steps: found 0; expected 1 or more"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        GradNorm(**options)


class Norms(Sorts):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(super().forward(x))


@pytest.mark.parametrize("tasks", ["rows", "total"])
def test_a_batch_norm_that_changes_no_other_task_is_fine(fit, tasks):
    module = Norms() if tasks == "rows" else Heads()
    if tasks == "rows":
        module.norm.eval()
    else:
        module.trunk.append(nn.BatchNorm1d(8))
    keep = fit(module, quiet(layer=None if tasks == "rows" else "trunk[0]"), max_steps=1)
    assert (keep.norms[0] > 0).all()


class Tied(Sorts):
    def __init__(self):
        super().__init__()
        self.blocks[1].down.weight = self.blocks[0].down.weight


class Own(Sorts):
    def __init__(self):
        super().__init__()
        self.tasks.set_by = "uncertainty"


class Flat(Sorts):
    def forward(self, x):
        return super().forward(x[:, None].expand(-1, 3, -1).flatten(0, 1)).view(-1, 3, 2).mean(1)


class NoList(Heads):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential()
        self.trunk.add_module("first", nn.Linear(6, 8))


class Without(Sorts):
    def __init__(self):
        super().__init__()
        self.tasks = nn.Identity()


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (Norms, {}, MisconfigurationException, "found norm, a batch norm"),
        (Tied, {}, MisconfigurationException, "weight that is shared"),
        (Own, {}, MisconfigurationException, "that uncertainty changes"),
        (Flat, {}, MisconfigurationException, r"input of shape \[24, 12\] and tasks of rows \[8\]"),
        (Without, {}, MisconfigurationException, "found 0 TaskWeights"),
        (Sorts, {"layer": "blocks[0].*"}, MisconfigurationException, "found 2 modules"),
        (Sorts, {"layer": "blocks[0]"}, MisconfigurationException, "found Block; expected a Linear"),
        (Sorts, {"layer": "block"}, SelectorError, "nearest: blocks"),
        (NoList, {}, MisconfigurationException, "set layer to one of trunk.first, a, b"),
        (Heads, {"layer": "tasks"}, MisconfigurationException, "found TaskWeights; expected a Linear"),
    ],
)
def test_what_would_be_wrong_is_refused(fit, module, options, error, message):
    with pytest.raises(error, match=message):
        fit(module(), quiet(**options), max_steps=1)


def test_a_frozen_layer_cant_be_differentiated_for(fit):
    module = Heads()
    module.trunk[0].weight.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="frozen weight"):
        fit(module, quiet(layer="trunk[0]"), max_steps=1)


def test_a_layer_without_a_part_in_the_loss(fit):
    class Aside(Sorts):
        def __init__(self):
            super().__init__()
            self.aside = nn.Linear(6, 6)

    with pytest.raises(MisconfigurationException, match="layer aside had no part in the loss"):
        fit(Aside(), quiet(layer="aside"), max_steps=1)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_split_the_model(strategy):
    trainer = type("T", (), {"strategy": strategy.__new__(strategy)})()
    with pytest.raises(MisconfigurationException, match=f"found trainer.strategy {strategy.__name__}"):
        quiet().setup(trainer, Sorts(), "fit")
    quiet().setup(trainer, Sorts(), "validate")


def test_manual_optimization(make_trainer):
    module = Sorts()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="manual optimization"):
        make_trainer(callbacks=[quiet()], max_steps=1).fit(module, DataLoader(data(), 8))
