"""What went bad is named.

Oracles: traps put into known places.
"""

import pytest
import torch
from torch import nn

from tests.support.nonfinite import Sequence, Trap, diagnosis_of, tokens

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


@pytest.mark.parametrize(
    ("fault", "phase", "module", "near"),
    [
        ("between", "input", "head (Linear)", ""),
        ("loss", "loss", "", ""),
        ("derivative of the loss", "backward", "training_step", "head"),
        ("", "none", "", ""),
    ],
)
def test_named_outside_modules(fault, phase, module, near):
    found = diagnosis_of(Sequence(fault), tokens())
    assert (found.phase, found.module, found.near) == (phase, module, near)


def test_named_in_the_batch_and_in_nothing_learned(digits):
    bad = next(iter(digits.Digits().train_dataloader()))
    bad[0][0, 0, 0, 0] = torch.nan
    assert diagnosis_of(digits.Classifier(), bad).phase == "input"
    found = diagnosis_of(Sequence(), tokens([[-100, -100], [-100, -100]]))
    assert (found.phase, found.inputs[0].row[1]) == ("loss", "[2, 2, 3]")


@pytest.mark.parametrize(
    ("name", "value"),
    [("blocks.0.conv.weight", -torch.inf), ("blocks.2.norm.bias", torch.inf), ("head.bias", torch.nan)],
)
def test_named_parameter(trapped, batches_of, name, value):
    module = trapped()
    with torch.no_grad():
        module.get_parameter(name).view(-1)[1] = value
    found = diagnosis_of(module, batches_of(1)[0])
    owner, _, key = name.rpartition(".")
    assert found.phase == "forward"
    assert found.module.split()[0] == owner
    assert found.broken == [key]
    assert str(found) == f"NaN or infinity is in {found.module} itself: {key}"


def test_statistics_that_the_batch_spoils_are_not_what_was_wrong(digits):
    """BatchNorm's become NaN in the replay too; before it they were fine."""

    class Divides(digits.Classifier):
        def forward(self, pictures):
            return super().forward(pictures / 0)

    found = diagnosis_of(Divides(), next(iter(digits.Digits().train_dataloader())))
    assert (found.phase, found.near, found.broken) == ("forward", "stem", [])


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("place", ["stem.2", "blocks.1.drop", "blocks.2.norm", "head", "blocks.0"])
def test_named_module(trapped, batches_of, place, kind):
    """Anywhere: inside residual branches, first, last, and around other modules."""
    module = trapped()
    module.blocks[1].drop = nn.Identity()
    module.set_submodule(place, nn.Sequential(module.get_submodule(place), Trap(kind)))
    found = diagnosis_of(module, batches_of(1, marked=[0])[0])
    assert (found.phase, found.module) == (kind, f"{place}.1 (Trap)")
    assert all(not one.is_bad for one in found.inputs)


def test_named_in_code_of_a_container(digits, batches_of):
    class Careless(digits.Classifier):
        def forward(self, pictures):
            x = self.stem(pictures)
            return self.head((x / (x - x)).flatten(1)[:, :32])

    found = diagnosis_of(Careless(), batches_of(1)[0])
    assert (found.module, found.near) == ("the LightningModule (Careless)", "head")


def test_named_gradient_of_a_parameter_alone():
    class Power(nn.Module):
        """Its parameter's derivative is infinite where its input's is fine."""

        def __init__(self):
            super().__init__()
            self.exponent = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + self.exponent.sqrt()

    class Powers(Sequence):
        def __init__(self):
            super().__init__()
            self.mix = nn.Sequential(nn.Linear(4, 4), Power())

    found = diagnosis_of(Powers(), tokens())
    assert (found.phase, found.module, found.parameter) == ("backward", "mix.1 (Power)", "mix.1.exponent")


def test_overflow_that_only_the_loss_scale_makes():
    module = Sequence().half()
    assert diagnosis_of(module, tokens()).phase == "none"
    assert diagnosis_of(module, tokens(), factor=2.0**20).phase == "backward"


def test_masks_of_minus_infinity_are_meant():
    class Attention(nn.Module):
        def forward(self, x, mask):
            scores = (x @ x.transpose(-1, -2) + mask).softmax(-1)
            return scores @ x / (x - x)

    class Masked(Sequence):
        def __init__(self):
            super().__init__()
            self.mix = Attention()

        def training_step(self, batch, batch_idx):
            mask = torch.full((2, 2), -torch.inf).triu(1)
            return self.mix(self.embed(batch["input_ids"]), mask=mask).sum()

    found = diagnosis_of(Masked(), tokens())
    assert (found.phase, found.module) == ("forward", "mix (Attention)")
    assert [one.path for one in found.inputs] == ["[0]", "mask"] or found.inputs[-1].path.endswith("mask")


def test_statistics_of_the_input(trapped, batches_of):
    """Against NumPy, of what the trapped module is given in an ordinary forward."""
    module, (batch,) = trapped(), batches_of(1, marked=[0])
    seen = []
    module.blocks[1].drop.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().numpy()))
    module(batch[0])
    row = diagnosis_of(module, batch).inputs[0].row
    (x, *_) = seen
    numbers = [x.min(), x.max(), x.mean(), abs(x).max()]
    assert row == ["[0]", str(list(x.shape)), "float32", *(f"{one:.4g}" for one in numbers), "0"]


def test_a_failed_replay_is_an_error_in_the_diagnosis():
    class Once(Sequence):
        def training_step(self, batch, batch_idx):
            raise ValueError("no more")

    found = diagnosis_of(Once(), tokens())
    assert (found.phase, found.error) == ("error", "ValueError: no more")
