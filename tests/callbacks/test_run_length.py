"""How much of a fit lies ahead, compared with what Lightning then does."""

import math
from fractions import Fraction

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import EarlyStopCheckpoint, GradientMonitor, NonFiniteGuard, StagedUnfreezing
from lightning_vlm_callbacks.run_length import (
    epochs_ahead,
    share_of_steps,
    steps_of_run,
    validations_ahead,
    why_no_validation,
)


class Count(Callback):
    """What was expected when training began, and what came."""

    def on_train_start(self, trainer, module):
        self.expected = [validations_ahead(trainer), epochs_ahead(trainer), steps_of_run(trainer)]
        self.why = "" if self.expected[0] else why_no_validation(trainer)
        self.found = [0, 0, 0]

    def on_validation_end(self, trainer, module):
        self.found[0] += not trainer.sanity_checking

    def on_train_epoch_end(self, trainer, module):
        self.found[1] += trainer.fit_loop.epoch_loop._num_ready_batches_reached()

    def on_train_end(self, trainer, module):
        self.found[2] = trainer.global_step


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, ""),
        ({"val_check_interval": 3}, ""),
        ({"val_check_interval": 0.5, "accumulate_grad_batches": 4}, ""),
        ({"check_val_every_n_epoch": 2}, ""),
        ({"check_val_every_n_epoch": 4}, "check_val_every_n_epoch (4) comes after the run's end"),
        ({"check_val_every_n_epoch": None, "val_check_interval": 10}, ""),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 22},
            "val_check_interval (22) is longer than the run",
        ),
        ({"limit_val_batches": 0}, "limit_val_batches is 0"),
        ({"max_epochs": -1, "max_steps": 10}, ""),
        (
            {"max_epochs": -1, "max_steps": 6},
            "check_val_every_n_epoch (1) comes after the run's end",
        ),
        ({"max_epochs": 2, "max_steps": 100, "accumulate_grad_batches": 3}, ""),
        ({"max_steps": 4, "accumulate_grad_batches": 3, "val_check_interval": 2}, ""),
        ({"accumulate_grad_batches": {0: 1, 1: 3}, "max_steps": 11}, ""),
    ],
    ids=str,
)
def test_what_lies_ahead(make_trainer, options, why):
    """7 batches in an epoch, 3 epochs."""
    windows, callbacks = options.get("accumulate_grad_batches"), []
    if isinstance(windows, dict):
        options = {name: value for name, value in options.items() if name != "accumulate_grad_batches"}
        callbacks = [GradientAccumulationScheduler(windows)]
    count = Count()
    options = {"max_epochs": 3, "limit_train_batches": 7, "limit_val_batches": 1, **options}
    make_trainer(callbacks=[count, *callbacks], **options).fit(BoringModel())
    assert count.expected == count.found
    assert count.why == why


def test_what_lies_ahead_of_a_resumed_run(make_trainer, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 10:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    options = {"max_epochs": 4, "limit_train_batches": 7, "limit_val_batches": 1}
    for more in ({}, {"check_val_every_n_epoch": None, "val_check_interval": 5}):
        make_trainer(callbacks=[Save()], **options, **more).fit(BoringModel())
        count = Count()
        trainer = make_trainer(callbacks=[count], **options, **more)
        trainer.fit(BoringModel(), ckpt_path=tmp_path / "inside.ckpt", weights_only=True)
        assert count.expected == count.found


def test_what_nobody_knows(make_trainer):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(RandomDataset(32, 6))

    count = Count()
    loader = torch.utils.data.DataLoader(Stream(), 2)
    make_trainer(callbacks=[count], max_epochs=1, limit_val_batches=1).fit(BoringModel(), loader)
    assert count.expected == [math.inf] * 3
    make_trainer(callbacks=[count], max_epochs=1, limit_val_batches=1).fit(
        BoringModel(), loader, torch.utils.data.DataLoader([], 1)
    )
    assert count.expected == [0, math.inf, math.inf]
    assert count.why == "the validation data are empty"


def test_a_share_of_steps_is_the_first_step_at_or_past_it():
    for total in (1, 3, 7, 100, 999):
        for hundredths in range(100):
            share = Fraction(hundredths, 100)
            wanted = next(step for step in range(total + 1) if Fraction(step, total) >= share)
            assert share_of_steps(hundredths / 100, total) == wanted


class AtRest(LightningModule):
    """A metric that never gets better, in training and in each second validation."""

    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def training_step(self, batch, _):
        self.log("train_loss", torch.tensor(1.0))
        return self.head(self.body(batch)).square().mean()

    def validation_step(self, batch, _):
        if self.current_epoch % 2:
            self.log("val_loss", torch.tensor(1.0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(RandomDataset(4, 16), 4)


NO_VALIDATION = [
    {"val_dataloaders": []},
    {"val_dataloaders": None},
    {"limit_val_batches": 0},
    {"check_val_every_n_epoch": 50},
    {"check_val_every_n_epoch": None, "val_check_interval": 1000},
]


@pytest.mark.parametrize("options", NO_VALIDATION, ids=str)
def test_without_validation_an_epochs_end_is_judged(make_trainer, tmp_path, options, caplog):
    """As Lightning's EarlyStopping on a metric of training does."""
    options = dict(options)
    loader = [torch.utils.data.DataLoader(RandomDataset(4, 4))]
    loaders = {"val_dataloaders": options.pop("val_dataloaders", loader)}

    def epochs(callback):
        trainer = make_trainer(callbacks=[callback], max_epochs=10, enable_checkpointing=True, **options)
        trainer.fit(AtRest(), **loaders)
        return trainer.current_epoch

    lightnings = EarlyStopping("train_loss", patience=2, check_on_train_epoch_end=True)
    ours = EarlyStopCheckpoint("train_loss", patience=2, dirpath=str(tmp_path))
    assert epochs(ours) == epochs(lightnings) == 3
    assert ours.best_model_path == str(tmp_path / "step-00000004.ckpt")
    assert "no validation comes in this run" in caplog.text
    stages = [
        {"at": 0, "train": {"head": 1.0}},
        {"on_plateau": {"monitor": "train_loss", "patience": 1}, "train": {"body": 1.0}},
    ]
    if "check_val_every_n_epoch" in options:  # the run is only too short
        with pytest.warns(UserWarning, match="begins no stage in this run, which validates 0 times"):
            epochs(StagedUnfreezing(stages))
    else:
        with pytest.raises(MisconfigurationException, match=r"found no validation in this run \("):
            epochs(StagedUnfreezing(stages))


def test_a_metric_of_each_second_validation(make_trainer, tmp_path):
    loader = torch.utils.data.DataLoader(RandomDataset(4, 4))

    def fit(**options):
        keep = EarlyStopCheckpoint("val_loss", dirpath=str(tmp_path), **options)
        trainer = make_trainer(callbacks=[keep], max_epochs=10, enable_checkpointing=True)
        trainer.fit(AtRest(), val_dataloaders=loader)
        return trainer, keep

    with pytest.raises(MisconfigurationException, match="found no metric 'val_loss' after step 4"):
        fit()
    trainer, keep = fit(strict=False, patience=2)
    assert trainer.current_epoch == 6  # judged in epochs 1, 3 and 5
    assert keep.best_model_path == str(tmp_path / "step-00000008.ckpt")


def test_a_plateau_counts_each_logged_value_once(make_trainer):
    """Lightning goes on showing the value of the validation before."""
    stages = [
        {"at": 0, "train": {"head": 1.0}},
        {"on_plateau": {"monitor": "val_loss", "patience": 2}, "train": {"body": 1.0}},
    ]
    staged = StagedUnfreezing(stages)
    trainer = make_trainer(callbacks=[Logged(), staged], max_epochs=8)
    trainer.fit(AtRest(), val_dataloaders=torch.utils.data.DataLoader(RandomDataset(4, 4)))
    assert staged.state_dict()["begun"] == {1: 24}  # after the validations of epochs 1, 3 and 5


class Logged(Callback):
    """The metric is there from the start, but not logged."""

    def on_train_start(self, trainer, module):
        trainer.callback_metrics["val_loss"] = torch.tensor(float("nan"))


def test_rules_that_come_too_late_are_said(make_trainer, tmp_path, recwarn):
    options = {"dirpath": str(tmp_path)}
    for keep in (
        EarlyStopCheckpoint("train_loss", patience=3, every_n_steps=50, **options),
        EarlyStopCheckpoint("nothing", strict=False, **options),
        EarlyStopCheckpoint("train_loss", patience=2, every_n_steps=12, **options),
    ):
        trainer = make_trainer(callbacks=[keep], max_epochs=3, enable_checkpointing=True)
        trainer.fit(AtRest(), val_dataloaders=[])
    said = [str(warning.message) for warning in recwarn if "EarlyStopCheckpoint" in str(warning.message)]
    said = [text for text in said if "moved to" not in text and "inside an epoch" not in text]
    assert said == [
        "EarlyStopCheckpoint: patience 3 stops nothing in this run, where train_loss is judged 3 times at an "
        "epoch's end; set a smaller one",
        "EarlyStopCheckpoint: every_n_steps 50 is longer than this run of 12 steps, so it adds nothing to "
        "the checkpoint at the run's end",
        "EarlyStopCheckpoint: nothing was never logged where it is judged, so there is no best checkpoint; "
        "there are: train_loss",
    ]


def test_intervals_that_are_longer_than_the_run_are_said(make_trainer, tmp_path, recwarn):
    callbacks = [
        GradientMonitor(every_n_steps=13),
        NonFiniteGuard("rollback", snapshot_every_n_steps=100, dirpath=str(tmp_path)),
    ]
    make_trainer(callbacks=callbacks, max_epochs=3).fit(AtRest(), val_dataloaders=[])
    make_trainer(callbacks=callbacks, max_epochs=25).fit(AtRest(), val_dataloaders=[])
    said = [str(warning.message) for warning in recwarn if "longer than this run" in str(warning.message)]
    assert said == [
        "GradientMonitor: every_n_steps 13 is longer than this run of 12 steps, so it measures nothing",
        "NonFiniteGuard: snapshot_every_n_steps 100 is longer than this run of 12 steps, so it can only go "
        "back to the start",
    ]
