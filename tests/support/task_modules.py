"""Modules that train several tasks, and what GradNorm measures in them."""

import copy

import torch
from lightning.pytorch import Callback, LightningModule
from lightning_vlm_callbacks import TaskWeights
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

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
    """Samples of tasks in turn."""
    torch.manual_seed(seed)
    x = torch.randn(size, 6)
    ids = torch.tensor(tasks)[torch.arange(size) % len(tasks)]
    y = torch.stack([x[:, 0] * (ids + 1), x[:, 1] - ids], 1)
    return TensorDataset(x, y, ids)


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
    """The batches of a loader that doesn't shuffle."""
    return [dataset[start : start + size] for start in range(0, len(dataset), size)]
