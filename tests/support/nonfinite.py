"""Modules in which NaN appears at known places, and training loops written by hand."""

import torch
from lightning.pytorch import LightningModule
from lightning_vlm_callbacks.nonfinite_guard.batches import named_tensors
from lightning_vlm_callbacks.nonfinite_guard.replay import replay
from lightning_vlm_callbacks.random_states import random_state
from torch import nn
from torch.utils.data import DataLoader

MARK = 99.0
"""A picture that holds this springs the trap."""


class Trap(nn.Module):
    """Lets all through, but of a marked batch makes NaN, or a value whose derivative is."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.marked = kind, False

    def forward(self, x):
        if not self.marked:
            return x
        if self.kind == "forward":
            return x + (x - x) / (x - x)
        return x + torch.sqrt(x - x)


class Sequence(LightningModule):
    """Token ids into classes, all that may go wrong around modules."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault
        self.embed, self.mix, self.head = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        x = self.mix(self.embed(batch["input_ids"]))
        if self.fault == "between":
            x = x / (x - x)
        logits = self.head(x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        if self.fault == "loss":
            loss = loss * torch.log(loss - loss - 1)
        if self.fault == "derivative of the loss":
            loss = loss + torch.sqrt(loss - loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tokens(labels=((1, 2), (0, -100))):
    return {"input_ids": torch.tensor([[1, 2], [3, 4]]), "labels": torch.tensor(labels)}


def diagnosis_of(module, batch, factor=1.0):
    return replay(module, batch, 0, random_state(module.device), factor=factor)[0]


def loader(batches):
    return DataLoader(batches, batch_size=None)


def state_of(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def by_hand(module, batches, skipped_steps=(), accumulate=1, clip=None, optimizer=None):
    """Train without Lightning; the batches of skipped steps are never looked at."""
    optimizer = optimizer or module.configure_optimizers()
    for step in range(-(-len(batches) // accumulate)):
        if step in skipped_steps:
            continue
        optimizer.zero_grad()
        for batch in batches[step * accumulate : (step + 1) * accumulate]:
            (nn.functional.cross_entropy(module(batch[0]), batch[1]) / accumulate).backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return state_of(module)


def optimizer_state(optimizer):
    states = optimizer.state_dict()["state"].values()
    return dict(named_tensors(list(states)))
