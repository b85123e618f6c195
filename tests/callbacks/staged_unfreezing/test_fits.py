"""What a fit leaves behind, says and logs; a second fit; the command line."""

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.selectors import SelectorError
from lightning_vlm_callbacks.staged_unfreezing.scaled_rates import ScaledRates
from torch import nn
from torch.optim import lr_scheduler as schedulers

from tests.support.staged import (
    OPTIONS,
    PLATEAUS,
    SCORES,
    STAGES,
    Scripted,
    assert_same,
    state_of,
)


def test_modes_hold_after_validation(classifier, digits, make_trainer):
    """Also if the module itself puts all in train mode then."""
    model, seen = classifier(), set()
    kind = type("Own", (type(model),), {"on_validation_model_train": lambda self: self.train()})
    model.__class__ = kind

    class Look(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            on = [name for name, module in pl_module.named_modules() if module.training]
            seen.add((trainer.global_step >= 3, *on))

    stages = [{"at": 0, "train": {"head": 1.0}}, {"at": 3, "train": {"blocks[0]": 1.0}}]
    trainer = make_trainer(
        callbacks=[StagedUnfreezing(stages, "step"), Look()], val_check_interval=1, max_steps=5
    )
    trainer.fit(model, digits.Digits())
    assert seen == {
        (False, "", "head"),
        (True, "", "blocks", "blocks.0", "blocks.0.conv", "blocks.0.norm", "blocks.0.drop"),
    }


def test_modes_are_given_back(classifier, digits, make_trainer):
    """A fit without stages that follows must not train a part whose dropout is off."""
    model = classifier()
    model.stem.eval()
    before = {name: module.training for name, module in model.named_modules()}
    trainer = make_trainer(max_steps=1, callbacks=[StagedUnfreezing([{"at": 0, "train": {"head": 1.0}}])])
    trainer.fit(model, digits.Digits())
    assert {name: module.training for name, module in model.named_modules()} == before
    assert before["blocks.0"]
    assert not before["stem.1"]


def test_a_second_fit_starts_over(classifier, digits, make_trainer):
    """With the same callback and the same module, weights put back, also after an error inside a step."""
    staged, model = StagedUnfreezing(PLATEAUS, "step", warmup_steps=2), classifier(dropout=0.0)
    start = state_of(model)

    class Stop(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 6 and attempt == 0:
                raise KeyError("stop")

    ends = []
    for attempt in range(3):
        model.load_state_dict(start)
        torch.manual_seed(0)
        trainer = make_trainer(
            callbacks=[Scripted(SCORES), staged, Stop()], val_check_interval=1, max_steps=9
        )
        if attempt == 0:
            with pytest.raises(KeyError, match="stop"):
                trainer.fit(model, digits.Digits(size=64))
        else:
            trainer.fit(model, digits.Digits(size=64))
            ends.append(state_of(model))
        assert all(one.requires_grad for one in model.parameters())
        (group,) = trainer.optimizers[0].param_groups
        assert group["lr"] == 1e-2
        assert len(group["params"]) == len(list(model.parameters()))
        assert not trainer.optimizers[0]._optimizer_step_pre_hooks
        assert not trainer.optimizers[0]._optimizer_step_post_hooks
    assert_same(ends[0], ends[1])
    trainer = make_trainer(
        callbacks=[Scripted(dict(enumerate(range(9)))), staged], val_check_interval=1, max_steps=8
    )
    trainer.fit(model, digits.Digits(size=64))
    assert staged.state_dict()["begun"] == {}


def test_optimizers_that_write_into_their_groups():
    class Counting(torch.optim.SGD):
        key = "steps"

        def step(self, closure=None):
            for group in self.param_groups:
                group[self.key] = group.get(self.key, 0) + (1 if self.key == "steps" else group["lr"])

    class Summing(Counting):
        key = "lr_sum"

    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for kind in (Counting, Summing):
        optimizer = kind(weights, lr=1.0)
        group = optimizer.param_groups[0]
        rates = ScaledRates([optimizer], lambda one: 0.5 if one is weights[0] else 1.0)
        if kind is Counting:
            optimizer.step()
            optimizer.step()
            assert optimizer.param_groups[0]["steps"] == 2
        else:
            with pytest.raises(
                MisconfigurationException, match="found optimizer Summing, which keeps 'lr_sum'"
            ):
                optimizer.step()
        assert optimizer.param_groups == [group]
        rates.remove()


def test_table_lines_and_scalar(classifier, digits, make_trainer, tmp_path, caplog):
    later = {"on_plateau": {"monitor": "val/loss"}, "train": {"blocks": 0.1, "blocks[1]": 1.0}}
    stages = [*STAGES[:2], later]
    logger = CSVLogger(tmp_path)
    model = classifier(schedule=lambda o: schedulers.LambdaLR(o, lambda step: (1 + step) / 5))
    trainer = make_trainer(
        callbacks=[StagedUnfreezing(stages, **OPTIONS)], logger=logger, max_steps=4, log_every_n_steps=100
    )
    with caplog.at_level("INFO"):
        trainer.fit(model, digits.Digits())
    table = next(text for text in caplog.messages if "what trains when" in text)
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["0", "0", "head", "1", "330", "0.01"],
        ["1", "3", "blocks[-1:]", "0.5", "600", "0.0025"],
        ["1", "3", "head.bias", "0.25", "10", "0.0025"],
        ["2", "val/loss", "at", "rest", "blocks", "0.1", "1,200", "0.000125", "to", "0.0005"],
        ["2", "val/loss", "at", "rest", "blocks[1]", "1", "600", "0.0025"],
        ["never", "(all", "else)", "96"],
    ]
    assert [text for text in caplog.messages if text.startswith("StagedUnfreezing: step")] == [
        "StagedUnfreezing: step 0, stage 0 of 2 trains head ×1",
        "StagedUnfreezing: step 3, stage 1 of 2 trains blocks[-1:] ×0.5, head.bias ×0.25",
    ]
    rows = csv.DictReader((tmp_path / "lightning_logs/version_0/metrics.csv").open())
    logged = [(row["step"], float(row["staged_unfreezing/stage"])) for row in rows]
    assert logged == [("0", 0.0), ("3", 1.0)]


@pytest.mark.parametrize("name", ["lightning_vlm_callbacks.StagedUnfreezing", "StagedUnfreezing"])
def test_from_yaml(digits, tmp_path, name):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
trainer:
  accelerator: cpu
  devices: 1
  default_root_dir: {tmp_path}/run
  max_steps: 4
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: {name}
      init_args:
        stages:
          - at: 0.0
            train: {{head: 1.0}}
          - at: 0.5
            train: {{head: 1.0, "blocks[-2:]": 0.1}}
          - on_plateau: {{monitor: val/loss, patience: 9}}
            train: {{"*": 1.0}}
        warmup_steps: 2
        layer_decay: 0.9
model:
  schedule: {{class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {{gamma: 0.9}}}}
"""
    )
    before = state_of(digits.Classifier())
    cli = digits.main(["fit", "--config", str(config)])
    state = cli.trainer.optimizers[0].state
    held = {
        name.split(".")[0] + name.split(".")[1][:1] for name, p in cli.model.named_parameters() if p in state
    }
    assert held == {"headw", "headb", "blocks1", "blocks2"}
    assert before.keys() == state_of(cli.model).keys()
    other = ["--trainer.default_root_dir", str(tmp_path / "other"), "--trainer.callbacks.stages=medical"]
    with pytest.raises(SelectorError, match="projector"):
        digits.main(["fit", "--config", str(config), *other])
