"""A replay leaves nothing behind."""

import copy
import random

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import LightningModule, seed_everything
from lightning_vlm_callbacks.nonfinite_guard.isolation import isolated_copy
from lightning_vlm_callbacks.nonfinite_guard.replay import replay
from lightning_vlm_callbacks.random_states import random_state
from torch import nn

from tests.support.nonfinite import assert_same, state_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


class Busy(LightningModule):
    """Changes all it can in a training step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.target = nn.Linear(3, 3).requires_grad_(False)
        self.accuracy = torchmetrics.MeanMetric()
        self.register_buffer("queue", torch.zeros(4, 3))
        self.seen, self.sums, self.held = 0, torch.zeros(2), {"list": [1]}
        self.lock = (one for one in [1])  # can't be copied
        self.alias = [self.net[0].weight]
        self.logged = []

    def training_step(self, batch, batch_idx):
        x = self.net(batch) + random.random() + float(np.random.rand())
        self.seen += 1
        self.sums += x.detach().sum()
        self.held["list"].append(2)
        self.queue = torch.cat((self.queue[1:], x.detach()[:1]))
        self.accuracy(x.detach())
        self.log("loss", x.sum())
        self.log_dict({"more": x.sum()})
        self.logger.experiment.add_scalar("direct", 1)
        with torch.no_grad():
            self.target.weight.lerp_(self.net[0].weight, 0.5)
            torch._foreach_mul_([self.target.bias], 0.5)
        assert self.alias[0].data_ptr() == self.net[0].weight.data_ptr()
        return x.pow(2).sum()


def everything(module):
    return {
        "state": state_of(module),
        "gradients": {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None},
        "seen": module.seen,
        "sums": module.sums.clone(),
        "held": copy.deepcopy(module.held),
        "metric": {name: value.clone() for name, value in module.accuracy.metric_state.items()},
        "ids": [id(one) for one in (*module.parameters(), *module.modules(), module.lock)],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "class": type(module),
        "hooks": [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules()],
    }


def test_a_replay_leaves_nothing_behind():
    seed_everything(1, verbose=False)
    module = Busy()
    module.log = module.log_dict = pytest.fail  # it must not get here
    for one in module.parameters():
        one.grad = torch.full_like(one, 2.0) if one.requires_grad else None
        one.register_hook(lambda _: pytest.fail("a hook of the original")) if one.requires_grad else None
    randomness = random_state(module.device)
    torch.rand(3), random.random(), np.random.rand()
    x = torch.randn(8, 3)
    before = everything(module)
    found = replay(module, x, 0, randomness)[0]
    assert found.phase == "none", found
    after = everything(module)
    for name in ("state", "gradients", "metric"):
        assert_same(after.pop(name), before.pop(name))
    assert torch.equal(after.pop("sums"), before.pop("sums"))
    assert after == before


def test_a_replay_draws_the_same_random_numbers():
    module, x = Busy(), torch.randn(8, 3)
    module.log, module.log_dict = (lambda *_, **__: None,) * 2
    seed_everything(3, verbose=False)
    randomness = random_state(module.device)
    first, second = (replay(module, x, 0, randomness)[0].loss for _ in range(2))
    assert first == second
    random.seed(9)
    assert first != replay(module, x, 0, {**randomness, "python": random.getstate()})[0].loss
    np.random.seed(9)
    assert first != replay(module, x, 0, {**randomness, "numpy": np.random.get_state()})[0].loss
    torch.manual_seed(9)
    assert first != replay(module, x, 0, {**randomness, "torch": torch.get_rng_state()})[0].loss


def test_a_copy_shares_weights_only_and_syncs_with_nobody():
    module = Busy()
    module.sync = nn.SyncBatchNorm(3)
    trial = isolated_copy(module)
    for (name, one), other in zip(module.named_parameters(), trial.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr(), name
        assert one is not other or not one.requires_grad
    assert trial.queue is not module.queue
    trial.sync(torch.randn(4, 3))  # SyncBatchNorm itself refuses a CPU, let alone a lone rank
    assert module.sync.num_batches_tracked == 0
    assert isinstance(trial, Busy)


def test_a_step_that_reaches_the_module_itself():
    """By another way than the copy, as an object does that lists the parameters once."""

    class Lists(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.net(batch).sum() + 0 * weight.sum()

    module = Lists()
    weight = module.net.weight
    for before in (None, torch.ones(1, 2)):
        weight.grad = before
        replay(module, torch.ones(1, 2), 0, random_state(module.device))
        assert weight.grad is before
        assert before is None or before.equal(torch.ones(1, 2))
