"""The logged learning rates are those that the optimizer stepped with."""

import csv

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning_vlm_callbacks import NonFiniteGuard, RunReport, StagedUnfreezing
from lightning_vlm_callbacks.rates_in_force import rates_in_force, scalings
from lightning_vlm_callbacks.run_report.history import read_history

STAGES = [
    {"at": 0, "train": {"head": 1.0}},
    {"at": 2, "train": {"head": 0.5, "blocks": 0.1}},
    {"at": 5, "train": {"head": 0.5, "blocks": 0.1, "stem": 0.01}},
]


class Watched(torch.optim.AdamW):
    """Notes the rate of each parameter with a gradient, from inside the step."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        groups = self.param_groups
        self.steps = [
            *getattr(self, "steps", []),
            {p: g["lr"] for g in groups for p in g["params"] if p.grad is not None},
        ]
        super().step()
        return loss


def named_groups(model):
    late = [*model.head.parameters(), *model.blocks.parameters()]
    return [{"params": late, "name": "late"}, {"params": model.stem.parameters(), "lr": 0.04, "name": "stem"}]


GROUPS = {
    "one without a name": (
        lambda model: model.parameters(),
        {"head": "lr/head", "blocks": "lr/blocks", "stem": "lr/stem"},
    ),
    "each its own": (
        lambda model: [{"params": one.parameters()} for one in (model.head, model.blocks, model.stem)],
        {"head": "lr/0", "blocks": "lr/1", "stem": "lr/2"},
    ),
    "named": (named_groups, {"head": "lr/late/head", "blocks": "lr/late/blocks", "stem": "lr/stem"}),
}


def by_hand(part, step, base):
    """What STAGES, two steps of warm-up and a schedule that halves the rate at each step say."""
    begin = {"head": 0, "blocks": 2, "stem": 5}[part]
    if step < begin:
        return None
    scale = {"head": 1.0 if step < 2 else 0.5, "blocks": 0.1, "stem": 0.01}[part]
    warm = 0.5 if step == begin and part != "head" else 1.0
    return base * 0.5**step * scale * warm


@pytest.mark.parametrize(("groups", "columns"), GROUPS.values(), ids=GROUPS)
def test_logged_as_stepped(classifier, digits, make_trainer, tmp_path, groups, columns):
    model = classifier()

    def configure_optimizers():
        optimizer = Watched(groups(model), lr=0.02)
        halve = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halve, "interval": "step"}}

    model.configure_optimizers = configure_optimizers
    staged = StagedUnfreezing(STAGES, unit="step", warmup_steps=2)
    trainer = make_trainer(
        max_steps=8,
        logger=CSVLogger(tmp_path),
        accumulate_grad_batches=2,
        callbacks=[RunReport(str(tmp_path)), staged],
        max_epochs=4,
    )
    trainer.fit(model, digits.Digits())
    steps = trainer.optimizers[0].steps
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as lines:
        logged = {
            int(row["step"]): row for row in csv.DictReader(lines) if any(row[c] for c in columns.values())
        }
    history = read_history(tmp_path / "report.jsonl").curves
    recorded = {name: dict(curve.points()) for name, curve in history.items()}
    assert [*logged] == [*range(8)]
    for step, stepped in enumerate(steps):
        for part, column in columns.items():
            rates = {stepped.get(one) for one in getattr(model, part).parameters()}
            base = 0.04 if part == "stem" and "late" in columns["head"] else 0.02
            expected = by_hand(part, step, base)
            if expected is None:
                assert rates == {None}
                assert logged[step][column] == ""
                assert step not in recorded[column]
                continue
            assert len(rates) == 1
            assert rates.pop() == pytest.approx(expected)
            assert float(logged[step][column]) == pytest.approx(expected)
            assert recorded[column][step] == pytest.approx(expected)
    assert {name for name in recorded if name.startswith("lr")} == set(columns.values())
    assert trainer.optimizers[0] not in scalings


def test_layer_decay_shows_both_ends(classifier, digits, make_trainer, tmp_path):
    """Three blocks: factors 1/2, 1/4 and 1/8 of the rate, as the head is beside the list."""
    stages = [{"at": 0, "train": {"blocks": 1.0}}]
    trainer = make_trainer(
        max_steps=1, callbacks=[StagedUnfreezing(stages, layer_decay=0.5)], logger=CSVLogger(tmp_path)
    )
    trainer.fit(classifier(), digits.Digits())
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as lines:
        row = next(row for row in csv.DictReader(lines) if row.get("lr"))
    assert float(row["lr"]) == pytest.approx(0.01 / 2)
    assert float(row["lr/lowest"]) == pytest.approx(0.01 / 8)


@pytest.mark.filterwarnings("ignore")  # all but the one that is expected
def test_a_report_of_nan_has_them(classifier, digits, make_trainer, tmp_path):
    class Spoilt(Callback):
        def on_after_backward(self, trainer, module):
            if trainer.global_step == 2:
                module.head.bias.grad[0] = torch.nan

    staged, guard = StagedUnfreezing(STAGES, unit="step"), NonFiniteGuard(dirpath=str(tmp_path))
    with pytest.warns(UserWarning, match="a gradient is NaN"):
        make_trainer(max_steps=4, callbacks=[Spoilt(), staged, guard]).fit(classifier(), digits.Digits())
    report = (tmp_path / "step-00000002-rank0/report.md").read_text()
    assert "precision 32-true; lr/head 0.005; lr/blocks 0.001." in report


def test_without_stages_groups_show_by_name():
    weight, bias, other = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    groups = [
        {"params": [weight], "name": "rest"},
        {"params": [bias], "lr": 0.3, "name": "rest, no decay"},
    ]
    optimizers = [
        torch.optim.SGD(groups, lr=0.1),
        torch.optim.SGD([{"params": [other], "name": "rest"}], lr=1.0),
    ]
    assert rates_in_force(optimizers) == {"lr/rest": 0.1, "lr/rest, no decay": 0.3, "lr/rest/2": 1.0}


@pytest.mark.filterwarnings("ignore")  # all but the one that is expected
def test_a_learning_rate_monitor_is_explained(classifier, digits, make_trainer, tmp_path):
    """Lightning's own reads the groups between steps, where no scale holds."""
    stages = [{"at": 0, "train": {"head": 0.1}}]
    callbacks = [StagedUnfreezing(stages), LearningRateMonitor()]
    trainer = make_trainer(max_steps=1, callbacks=callbacks, logger=CSVLogger(tmp_path))
    with pytest.warns(
        UserWarning, match=r"LearningRateMonitor shows .* the rates in force are logged as lr/"
    ):
        trainer.fit(classifier(), digits.Digits())
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["lr"]) for row in rows if row["lr"]] == [pytest.approx(0.001)]
    assert [float(row["lr-AdamW"]) for row in rows if row["lr-AdamW"]][:1] == [pytest.approx(0.01)]
