"""A plain module, callbacks that spoil its gradients, and what keeps what is logged."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers.logger import Logger
from torch import nn

STATS = {"norm", "mean", "std", "max", "zeros", "clipped_norm", "update_ratio"}


class Kept(Logger):
    """Keeps what is logged: a list of (step, values)."""

    name, version = "kept", "0"

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        if values := {name: value for name, value in metrics.items() if name.startswith("gradients/")}:
            self.lines.append((step, values))

    def log_hyperparams(self, *_, **__):
        pass

    def of(self, group):
        """The statistics of a group: a list of (step, values)."""
        start = f"gradients/{group}/"
        found = [
            (step, {name.removeprefix(start): x for name, x in values.items() if name.startswith(start)})
            for step, values in self.lines
        ]
        return [(step, values) for step, values in found if values]


class Plain(LightningModule):
    """Without norms over a batch or dropout, so that a batch may be split; a pixel of digits is often 0."""

    def __init__(self, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
        self.optimizer = optimizer

    def forward(self, pictures):
        return self.head(torch.relu(self.stem(pictures.flatten(1))))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Poison(Callback):
    """Multiplies gradients of one parameter at some steps."""

    def __init__(self, name, factors):
        self.name, self.factors = name, factors

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.get_parameter(self.name).grad.mul_(self.factors.get(trainer.global_step, 1.0))


class See(Callback):
    """Keeps gradients by name."""

    def __init__(self):
        self.all = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.all.append({name: one.grad.clone() for name, one in pl_module.named_parameters()})


class Drop(Callback):
    """Takes gradients away at some steps, as a person would by hand."""

    def __init__(self, *steps):
        self.steps = steps

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for one in pl_module.parameters():
            one.grad = None if trainer.global_step in self.steps else one.grad


def flat_statistics(gradients):
    """By torch, of all elements in one vector."""
    flat = torch.cat([one.flatten().double() for one in gradients])
    return {
        "norm": torch.linalg.vector_norm(flat).item(),
        "mean": flat.mean().item(),
        "std": flat.std(correction=0).item(),
        "max": flat.abs().max().item(),
        "zeros": (flat == 0).double().mean().item(),
    }


def weights_of(module):
    return [one.detach().clone() for one in module.parameters()]


def optimizer_state(trainer):
    states = trainer.optimizers[0].state_dict()["state"]
    return {f"{number} {name}": x.clone() for number, of in states.items() for name, x in of.items()}


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def assert_close(found, expected, rel=1e-5):
    assert found == {name: pytest.approx(value, rel=rel, abs=1e-8) for name, value in expected.items()}


def warnings_of(recwarn):
    return [str(one.message) for one in recwarn if "GradientMonitor" in str(one.message)]


def names_of(logger):
    return list(dict.fromkeys(name.split("/")[1] for name in logger.lines[0][1]))


def numpy_histogram(gradients):
    values = np.abs(torch.cat([one.flatten() for one in gradients]).numpy())
    return np.histogram(np.log2(values.clip(2.0**-40, 2.0**8)), bins=range(-40, 9))[0]
