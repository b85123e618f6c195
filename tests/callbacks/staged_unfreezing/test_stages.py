"""When a stage begins, and by how much a layer's rate is lower than the next one's."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.staged_unfreezing.entries import depth_factors
from lightning_vlm_callbacks.staged_unfreezing.stages import (
    trains_since,
    warm_up,
)
from torch import nn

from tests.support.staged import GOOD


def test_epochs_and_fractions_are_the_loops_own(classifier, digits, make_trainer):
    """Windows of 2 batches in the first epoch, then of 1: epochs of 4 and 8 steps."""
    seen = {}

    class Look(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.blocks[0].conv.bias.requires_grad:
                seen.setdefault(self.name, (trainer.current_epoch, batch_idx, trainer.global_step))

    for unit, at, steps in (
        ("epoch", 1, -1),
        ("epoch", 1.5, -1),
        ("fraction", 0.25, -1),
        ("fraction", 0.7, -1),
        ("fraction", 0.5, 6),
    ):
        stages = [GOOD, {"at": at, "train": {"blocks": 1.0}}]
        windows = GradientAccumulationScheduler({0: 2, 1: 1})
        trainer = make_trainer(
            max_epochs=2,
            max_steps=steps,
            callbacks=[StagedUnfreezing(stages, unit), windows, Look(at)],
            limit_val_batches=0,
        )
        trainer.fit(classifier(), digits.Digits())
    # Of 12 steps, 9 / 12 >= 0.7 > 8 / 12; or of 6, where they end the run.
    assert seen == {1: (1, 0, 4), 1.5: (1, 4, 8), 0.25: (0, 6, 3), 0.7: (1, 5, 9), 0.5: (0, 6, 3)}


def test_warm_up_begins_with_each_unbroken_run_of_stages():
    """Against a walk over all steps; stage 2 of the starts is overtaken, stage 4 never comes."""
    starts, in_stage = [0, 4, 9, 9, None], [True, False, True, True, True]
    since = None
    for step in range(15):
        stage = 0 if step < 4 else 1 if step < 9 else 3
        if not in_stage[stage]:
            since = step + 1
            continue
        assert trains_since(step, starts, in_stage) == since
        factor = 1.0 if since is None else min(1.0, (step - since + 1) / 3)
        assert warm_up(step, since, 3) == factor


def test_layer_decay_is_a_closed_form():
    model = nn.ModuleDict(
        {
            "embed": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "encoder": nn.ModuleDict(
                {"layers": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(4))}
            ),
            "norm": nn.LayerNorm(2),
            "mlp": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        }
    )
    named = dict(model.named_parameters())
    powers = {"embed": 5, "encoder.layers.0": 4, "encoder.layers.1": 3, "encoder.layers.2": 2}
    powers |= {"encoder.layers.3": 1, "norm": 0, "mlp": 0}
    for some in (named, {name: named[name] for name in named if "layers.2" in name or "layers.3" in name}):
        for name, factor in depth_factors(model, some, 0.9).items():
            (power,) = (power for place, power in powers.items() if name.startswith(place + "."))
            assert factor == pytest.approx(0.9**power, abs=1e-15)
    assert set(depth_factors(model, {"norm.weight": model["norm"].weight}, 0.9).values()) == {1.0}
