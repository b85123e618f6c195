"""Resumed runs, second fits, configs, and what is refused."""

import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradientMonitor

from tests.callbacks.gradient_monitor.support import (
    Kept,
    Poison,
    See,
    assert_equal,
    numpy_histogram,
    optimizer_state,
    warnings_of,
    weights_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:GradientMonitor")


class Save(Callback):
    """A checkpoint after a step."""

    def __init__(self, file, step):
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize(
    ("at", "every_n_steps", "on_anomaly"),
    [
        (3, 3, "warn"),
        (5, 1, "warn"),
        (5, 3, "skip"),
        (6, 1, "skip"),
    ],  # a step is measured but not read, or not
)
def test_resumed_is_uninterrupted(
    fit, classifier, digits, tmp_path, dead_after, at, every_n_steps, on_anomaly
):
    """Weights, optimizer, what is usual and what was counted, logged values: the same, bit for bit."""
    file = tmp_path / "at.ckpt"
    dead_after(3)

    def run(*callbacks, **options):
        seed_everything(2)
        model = classifier(dropout=0.0)
        watched = GradientMonitor(on_anomaly=on_anomaly, every_n_steps=every_n_steps)
        poison = [
            Poison("head.bias", {3: math.nan, 9: 1e5}),
            Poison("stem.0.weight", dict.fromkeys(range(2, 9), 0.0)),
        ]
        data = digits.Digits(64, 16)  # 4 steps an epoch
        if on_anomaly == "warn":
            poison = poison[1:]
        trainer = fit([*poison, watched, *callbacks], model, -1, data, max_epochs=3, **options)
        return weights_of(model), optimizer_state(trainer), watched.state_dict(), trainer.logger.lines

    whole = run(Save(file, at))
    resumed = run(ckpt_path=file)
    assert_equal(resumed[0], whole[0])
    assert_equal(list(resumed[1].values()), list(whole[1].values()))
    assert repr(resumed[2]) == repr(whole[2])  # repr, as NaN is in the history
    assert repr(resumed[3]) == repr([line for line in whole[3] if line[0] >= at])


def test_a_stop_that_is_due_survives_a_resume(fit, tmp_path):
    """The step that gives the reason has been read, for the checkpoint, but not acted on."""
    file = tmp_path / "at.ckpt"

    def run(*callbacks, **options):
        watched = GradientMonitor(on_anomaly="stop")
        trainer = fit([Poison("head.bias", {2: 1e6}), watched, *callbacks], **options)
        return trainer.global_step

    assert run(Save(file, 3)) == run(ckpt_path=file)


def test_all_of_the_state_comes_back(tmp_path):
    """As a checkpoint has it: nothing but primitives."""
    first, second = GradientMonitor(), GradientMonitor()
    first._watch.judge(3, {"a": 1e3, "b": None})
    first._skips = 7
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second._skips == 7
    assert second.state_dict() == first.state_dict()


def test_the_constructor_wins_on_resume(fit, tmp_path, recwarn):
    file = tmp_path / "at.ckpt"
    fit([GradientMonitor(["stem", "head"]), Save(file, 4)])
    watched = GradientMonitor(["head"], max_norm=1e-3)
    fit([watched], ckpt_path=file)
    assert watched.limits.max_norm == 1e-3
    assert "step 4: exploding in 'head'" in warnings_of(recwarn)[0]
    assert watched._watch.usual["head"].seen == 6


def test_fit_again_begins_anew(fit):
    watched = GradientMonitor()
    first = fit([watched])
    state = watched.state_dict()
    second = fit([watched])
    assert watched.state_dict() == state
    assert second.logger.lines == first.logger.lines


def test_from_a_config(digits, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"""
seed_everything: 0
trainer:
  accelerator: cpu
  max_steps: 4
  log_every_n_steps: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: {tmp_path}}}
  callbacks:
    - class_path: GradientMonitor
      init_args:
        groups: [stem, "blocks[-1]"]
        on_anomaly: skip
""")
    digits.main(["fit", "--config", str(config)])
    text = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "gradients/blocks[-1]/update_ratio" in text


def test_histograms_to_wandb(fit, tmp_path, monkeypatch):
    """A real run, offline."""
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    with pytest.raises(MisconfigurationException, match="no logger that shows histograms"):
        fit([GradientMonitor(histogram=True)])
    fit([GradientMonitor(histogram=True)], fast_dev_run=True)  # it takes all loggers away
    sent = []
    log = logger.experiment.log
    monkeypatch.setattr(
        logger.experiment, "log", lambda values, **options: (sent.append(values), log(values, **options))
    )
    see = See()
    fit([GradientMonitor(histogram=True), see], steps=2, logger=[logger, Kept()])
    logger.experiment.finish()
    found = [one for one in sent if "gradients/head/log2" in one]
    assert [one["trainer/global_step"] for one in found] == [0, 1]
    for one, gradients in zip(found, see.all, strict=True):
        histogram = one["gradients/head/log2"]
        head = [gradients["head.weight"], gradients["head.bias"]]
        assert list(histogram.histogram) == numpy_histogram(head).tolist()
        assert list(histogram.bins) == list(range(-40, 9))
    norms = [one["gradients/all/norm"] for one in sent if "gradients/all/norm" in one]
    assert len(norms) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": 0},
        {"max_norm": -1.0},
        {"max_z": math.nan},
        {"on_anomaly": "ignore"},
    ],
)
def test_arguments_out_of_range(options):
    (name,) = options
    with pytest.raises(MisconfigurationException, match=f"{name}: found .*expected"):
        GradientMonitor(**options)
