"""Frozen parts stay in eval mode whatever a project does, against a run that leaves modes alone."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.modes import freeze_statistics, hold_modes, release_modes
from torch import nn

STAGES = [{"at": 0, "train": {"head": 1.0}}, {"at": 4, "train": {"head": 1.0, "blocks[-1:]": 1.0}}]


class FrozenHead(nn.Module):
    """Looks at its mode itself, as attention with dropout does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training) * self.weight.view(-1, 1, 1)


def write_modes(module):
    for one in module.modules():
        if isinstance(one, nn.Dropout | nn.BatchNorm2d) and not any(
            p.requires_grad for p in one.parameters()
        ):
            one.training = True


MISCHIEF = {
    "train at an epoch's start": ("on_train_epoch_start", lambda self: self.train()),
    "train at a batch's start": ("on_train_batch_start", lambda self, *_: self.train() and None),
    "train of a part": ("on_train_batch_start", lambda self, *_: self.stem.train() and None),
    "train of a layer": ("on_train_batch_start", lambda self, *_: self.stem[1].train() and None),
    "train of all": ("on_train_batch_start", lambda self, *_: self.apply(lambda one: one.train()) and None),
    "train after validation": ("on_validation_model_train", lambda self: self.train()),
    "written at a batch's start": ("on_train_batch_start", lambda self, *_: write_modes(self.stem)),
}


def run(make_trainer, classifier, digits, model=None, devices=1):
    model = model or classifier(dropout=0.1)
    model.stem.append(FrozenHead())
    seed_everything(1, verbose=False)
    staged = StagedUnfreezing(STAGES, unit="step")
    trainer = make_trainer(max_epochs=2, callbacks=[staged], limit_val_batches=1)
    trainer.fit(model, digits.Digits(size=64))
    return model


@pytest.mark.parametrize("mischief", MISCHIEF)
def test_staged_unfreezing_holds_them(make_trainer, classifier, digits, mischief):
    hook, function = MISCHIEF[mischief]
    expected = run(make_trainer, classifier, digits).state_dict()
    model = classifier(dropout=0.1)
    model.__class__ = type("Project", (type(model),), {hook: function})
    found = run(make_trainer, classifier, digits, model).state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert int(found["stem.1.num_batches_tracked"]) == 0
    assert int(found["blocks.2.norm.num_batches_tracked"]) == 4


def test_train_in_the_training_step(make_trainer, classifier, digits):
    expected = run(make_trainer, classifier, digits).state_dict()
    model = classifier(dropout=0.1)

    def training_step(self, batch, batch_idx):
        self.train()
        return super(kind, self).training_step(batch, batch_idx)

    kind = model.__class__ = type("Project", (type(model),), {"training_step": training_step})
    found = run(make_trainer, classifier, digits, model).state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_they_are_released_with_the_fit(make_trainer, classifier, digits):
    model = run(make_trainer, classifier, digits)
    assert all(one.training for one in model.train().modules())
    assert not any("train" in one.__dict__ for one in model.modules())
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_what_trains_may_be_in_eval_mode():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).requires_grad_(False))
    hold_modes(model)
    model[0].eval()
    model(torch.randn(4, 2))
    assert [int(one.num_batches_tracked) for one in model] == [0, 0]


def test_frozen_statistics_stay_though_their_weights_train():
    norms = nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)
    model = nn.Sequential(*norms, nn.Linear(2, 2))
    freeze_statistics(model)
    hold_modes(model)
    model.train()
    assert [one.training for one in model] == [False, True, True]
    model[0].training = True
    batch = torch.randn(4, 2)
    together = model[0](batch)
    torch.testing.assert_close(together, torch.cat([model[0](one) for one in batch.split(1)]))
    together.sum().backward()
    assert model[0].bias.grad.tolist() == [4.0, 4.0]
    assert int(model[0].num_batches_tracked) == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_holds_its_own(copied):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).requires_grad_(False))
    hold_modes(model)
    other = copied(model)
    release_modes(model)
    model.train()
    other.train()
    other[1].training = True
    other(torch.randn(4, 2))
    assert [one.training for one in other] == [True, False]
    assert [one.training for one in model] == [True, True]


def test_checkpointed_and_compiled():
    """Gradient checkpointing runs a part again in backward; a compiled part has the mode of when it was."""
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).requires_grad_(False)
    model = nn.ModuleDict({"trained": nn.Linear(4, 4), "frozen": frozen})
    compiled = torch.compile(frozen, backend="eager")
    hold_modes(model)
    x = torch.randn(8, 4)
    outputs = []
    for part in (
        frozen,
        compiled,
        lambda x: torch.utils.checkpoint.checkpoint(frozen, x, use_reentrant=False),
    ):
        model.train()
        compiled.train()
        output = part(model["trained"](x))
        output.sum().backward()
        outputs.append(output.detach())
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert int(frozen[1].num_batches_tracked) == 0
