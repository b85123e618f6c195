"""What would be silently wrong is refused."""

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradNorm, TaskWeights
from lightning_vlm_callbacks.selectors import SelectorError
from torch import nn

from tests.support.task_modules import Heads, Sorts


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
    keep = fit(module, GradNorm(layer=None if tasks == "rows" else "trunk[0]"), max_steps=1)
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
        fit(module(), GradNorm(**options), max_steps=1)


class One(Heads):
    def __init__(self):
        super().__init__()
        self.tasks = TaskWeights(["a"])

    def losses(self, batch):
        return {"a": super().losses(batch)["a"]}


def test_a_single_task_is_said_to_have_nothing_to_balance(fit):
    with pytest.warns(UserWarning, match="found one task, a, so there is nothing to balance"):
        fit(One(), GradNorm(), max_steps=1)


def test_a_frozen_layer_cant_be_differentiated_for(fit):
    module = Heads()
    module.trunk[0].weight.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="frozen weight"):
        fit(module, GradNorm(layer="trunk[0]"), max_steps=1)


def test_a_layer_without_a_part_in_the_loss(fit):
    class Aside(Sorts):
        def __init__(self):
            super().__init__()
            self.aside = nn.Linear(6, 6)

    with pytest.raises(MisconfigurationException, match="layer aside had no part in the loss"):
        fit(Aside(), GradNorm(layer="aside"), max_steps=1)
