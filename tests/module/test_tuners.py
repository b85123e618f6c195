"""Lightning's tuners change a run after it was set up: lengths are those of what then runs."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from lightning_vlm_callbacks import AdaptiveLoRARank, StagedUnfreezing

from lightning_vlm import VLMDataModule
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.optim import Linear

PLAN = {"projector": "full", "language": {"lora": {"r": 4}}}


class Steps(Callback):
    """What each optimizer step has: its rate, what trains, the weight of instructions."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, *_):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        trains = sum(one.requires_grad for one in module.parameters())
        self.seen.append((rate, trains, module.token_weights.instruction))


def callbacks():
    stages = [
        {"at": 0, "train": {"projector": 1.0}},
        {"at": 0.5, "train": {"projector": 1.0, "language": 1.0}},
    ]
    points = [{"at": 0, "instruction": 1.0}, {"at": 0.5, "instruction": 0.0}]
    rank = AdaptiveLoRARank(min_rank=2, multiple_of=2, start=0.25, every=0.25, until=0.75)
    return [StagedUnfreezing(stages), TokenWeightSchedule(points), rank]


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_batch_size_finder_changes_all_lengths(make_quiet, module, listed, words, mode):
    """Against the same run with the size given that was found."""
    samples, runs = [words(answer="Red. " * (1 + at % 3)) for at in range(48)], []
    for finder in ([BatchSizeFinder(mode, max_trials=3, steps_per_trial=1)], []):
        data = VLMDataModule(train=listed(samples), val=listed(samples[:2]), batch_size=2)
        if not finder:
            data.batch_size = runs[0]["size"]
        steps, watchers = Steps(), callbacks()
        torch.manual_seed(0)
        trainer = make_quiet(max_epochs=1, callbacks=[*finder, *watchers, steps])
        one = module("llava", adapt=PLAN, schedule=Linear())
        trainer.fit(one, data)
        weights = {name: weight.detach() for name, weight in one.named_parameters()}
        ranks = [step for step, _ in watchers[-1]._history]
        run = {"size": data.batch_size, "val": data.eval_batch_size, "seen": steps.seen}
        runs.append({**run, "weights": weights, "ranks": ranks})
    tuned, given = runs
    assert tuned["size"] > 2
    assert tuned["val"] == tuned["size"]
    assert tuned["seen"] == given["seen"]
    assert tuned["ranks"] == given["ranks"]
    for name, weight in given["weights"].items():
        assert torch.equal(tuned["weights"][name], weight), name


@pytest.mark.parametrize("by", ["callback", "tuner"])
def test_learning_rate_finder_is_refused(make_quiet, module, by):
    trainer = make_quiet(max_epochs=1, callbacks=[LearningRateFinder()] if by == "callback" else [])
    one, data = module("llava", adapt=PLAN), VLMDataModule(train=Drawn(size=4), batch_size=2)
    with pytest.raises(
        UserError, match="found LearningRateFinder: it gives all parameters one learning rate"
    ):
        trainer.fit(one, data) if by == "callback" else Tuner(trainer).lr_find(one, data)


def test_longer_run_takes_its_rates_at_once(make_quiet, module, tmp_path):
    """A resumed run with more epochs, against a calculation."""
    data = VLMDataModule(train=Drawn(size=4), batch_size=2)
    trainer = make_quiet(max_epochs=1)
    trainer.fit(module("llava", adapt={"projector": "full"}, schedule=Linear()), data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    steps = Steps()
    one = module("llava", adapt={"projector": "full"}, schedule=Linear())
    make_quiet(max_epochs=2, callbacks=[steps]).fit(one, data, ckpt_path=tmp_path / "end.ckpt")
    assert [rate for rate, *_ in steps.seen] == pytest.approx([2e-4 * 0.375, 2e-4 * 0.125])
