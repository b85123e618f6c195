"""Optimizers that call their closure several times or never: right in a run, or refused at setup."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vlm import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.optim import Constant

PLAN = {"language": {"lora": {"r": 4}}}


class SAM(torch.optim.Optimizer):
    """Foret et al. (2021): the gradient at the worst point nearby, which takes a second closure."""

    def __init__(self, params, lr=0.1, rho=0.05, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "rho": rho, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure):
        loss = torch.enable_grad()(closure)()
        (group,) = self.param_groups
        found = [one for one in group["params"] if one.grad is not None]
        norm = torch.stack([one.grad.norm() for one in found]).norm()
        moves = [(one, group["rho"] * one.grad / norm) for one in found]
        for one, move in moves:
            one.add_(move)
        torch.enable_grad()(closure)()
        for one, move in moves:
            one.sub_(move)
        for one in found:
            one.sub_(group["lr"] * one.grad)
        return loss


class LateSAM(SAM):
    """Calls its closure once at first."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.steps = 0

    def step(self, closure):
        self.steps += 1
        if self.steps == 1:
            return closure()
        return super().step(closure)


class Deaf(torch.optim.SGD):
    def step(self, closure=None):
        return super().step()


class NoClosure(torch.optim.SGD):
    def step(self):
        return super().step()


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(float(trainer.callback_metrics.get("train/loss", 0)))


@pytest.fixture(scope="module")
def fit(make_quiet, module, listed, words):
    def run(optimizer, plan=PLAN, callbacks=(), task_weights=None, batch_size=2, **options):
        module_options = {"optimizer": optimizer, "schedule": Constant(), "clip": None}
        one = module("llava", adapt=plan, task_weights=task_weights, **module_options)
        samples = [words(answer="Red. " * (1 + at), task="ab"[at % 2]) for at in range(6)]
        data = VLMDataModule(train=listed(samples), batch_size=batch_size, shuffle=False)
        losses = Losses()
        trainer = make_quiet(max_epochs=1, callbacks=[*callbacks, losses], **options)
        trainer.fit(one, data)
        return one, trainer, losses.seen

    return run


REFUSED = {
    "LBFGS, accumulated": (torch.optim.LBFGS, {"accumulate_grad_batches": 2}, "closure several times a step"),
    "SAM, accumulated": (SAM, {"accumulate_grad_batches": 3}, "trainer.accumulate_grad_batches 3: only the"),
    "SAM after a step": (LateSAM, {"accumulate_grad_batches": 2}, "LateSAM, which calls its closure several"),
    "no call": (partial(Deaf, lr=0.1), {}, "found Deaf, whose step doesn't call the closure"),
    "no closure": (
        partial(NoClosure, lr=0.1),
        {},
        "NoClosure, whose step takes no argument named closure",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused(fit, case):
    optimizer, options, found = REFUSED[case]
    with pytest.raises(UserError, match=found):
        fit(optimizer, batch_size=1, **options)


def by_hand(module, batches, optimizer):
    """The same steps by plain torch: the loss over all tokens of a batch."""
    losses = []
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            targets = module.targets(batch)
            loss = module.loss_sums(batch).loss_sum / targets.weights.sum()
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure)))
    return losses


@pytest.mark.parametrize("optimizer", [partial(torch.optim.LBFGS, lr=0.1, max_iter=3), SAM])
def test_is_as_by_hand(fit, module, batch_of, listed, words, optimizer):
    found, trainer, losses = fit(optimizer)
    one = module("llava", adapt=PLAN)
    samples = [words(answer="Red. " * (1 + at), task="ab"[at % 2]) for at in range(6)]
    batches = [batch_of(one, listed(samples[at : at + 2])) for at in (0, 2, 4)]
    trained = [weight for weight in one.parameters() if weight.requires_grad]
    expected = by_hand(one, batches, optimizer(trained))
    assert trainer.global_step == 3
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weight in one.named_parameters():
        torch.testing.assert_close(dict(found.named_parameters())[name], weight, rtol=1e-4, atol=1e-5)


def test_each_call_has_the_same_dropout_and_the_step_counts_once(fit):
    """SAM that doesn't move to the worst point is SGD, but for the rounding of its way there and back."""
    plan = {"language": {"lora": {"r": 4, "dropout": 0.3}}}
    runs = [
        fit(optimizer, plan, task_weights="inverse_initial_loss")
        for optimizer in (partial(SAM, rho=0.0), partial(torch.optim.SGD, lr=0.1))
    ]
    (sam, _, losses), (sgd, _, expected) = runs
    assert losses == pytest.approx(expected, rel=1e-6)
    assert sam.steps.tokens_seen == sgd.steps.tokens_seen
    torch.testing.assert_close(sam.tasks.weights, sgd.tasks.weights)
    for name, weight in sgd.named_parameters():
        torch.testing.assert_close(dict(sam.named_parameters())[name], weight, rtol=1e-4, atol=1e-7)


def test_groups_that_an_optimizer_refuses(fit, make_quiet, module, listed, words):
    one = module("llava", adapt={"projector": "full", "language": "full"}, optimizer=torch.optim.LBFGS)
    one.learning_rates = {"projector": 1e-3}
    data = VLMDataModule(train=listed([words()]), batch_size=1)
    with pytest.raises(UserError, match=r"model.optimizer: LBFGS .*parameter groups"):
        make_quiet(max_epochs=1).fit(one, data)
