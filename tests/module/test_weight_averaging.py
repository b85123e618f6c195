"""Lightning's averages of weights beside a frozen base: small checkpoints, exact resume, averages scored."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import (
    Checkpoint,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning_vlm_callbacks import AdaptiveLoRARank, EarlyStopCheckpoint

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.optim import Constant

DECAY = 0.5
PLAN = {"projector": "full", "language": {"lora": {"r": 2}}}


class Save(Checkpoint):
    """In the middle of a window, of a validation, and at its end."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer, name):
        trainer.save_checkpoint(self.folder / f"{name} of step {trainer.global_step}.ckpt")

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_batch_end(self, trainer, *_):
        self.save(trainer, "validation's middle")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "validation's end")


class ByHand(Callback):
    """The average of what trains: the first weights after a step, and half of what comes after."""

    def __init__(self):
        self.average, self.step, self.scored = {}, 0, None

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            for name, weight in trained(module).items():
                old = self.average.get(name, weight)
                self.average[name] = DECAY * old + (1 - DECAY) * weight

    def on_validation_batch_start(self, trainer, module, *_):
        self.scored = trained(module)


def trained(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.fixture(scope="module")
def fit(module, make_quiet):
    base = module("llava", adapt=PLAN, schedule=Constant())
    assert base.processor

    def run(*callbacks, ckpt_path=None, **options):
        seed_everything(1, verbose=False)
        mine = copy.deepcopy(base)
        given = {"max_epochs": 2, "accumulate_grad_batches": 2, "enable_checkpointing": True, **options}
        trainer = make_quiet(callbacks=list(callbacks), **given)
        data = VLMDataModule(train=Drawn("train", size=8), val=Drawn("val", size=2), batch_size=2)
        trainer.fit(mine, data, ckpt_path=ckpt_path, weights_only=True)
        return mine, trainer

    return run


def test_averaged_scored_saved_and_resumed(fit, tmp_path):
    hand = ByHand()
    ema = EMAWeightAveraging(decay=DECAY)
    whole, trainer = fit(ema, hand, Save(tmp_path))
    frozen = {name: p for name, p in whole.named_parameters() if not p.requires_grad}
    assert_equal(trained(whole), hand.average)  # Lightning puts the average into the module at the end
    assert_equal(hand.scored, hand.average)
    untouched = VLMModule(whole.name_or_path, adapt=PLAN, chat_template="plain")
    untouched.configure_model()
    assert_equal(frozen, {name: p for name, p in untouched.named_parameters() if not p.requires_grad})

    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) > 6
    for file in files:
        saved = torch.load(file, weights_only=True)
        assert saved["state_dict"].keys() == saved["current_model_state"].keys() == hand.average.keys()
        again, _ = fit(EMAWeightAveraging(decay=DECAY), ckpt_path=file)
        assert_equal(trained(again), hand.average)
    assert_equal(trained(VLMModule.load_from_checkpoint(files[-1])), hand.average)
    # A Trainer that has fitted keeps its callback, which must not put the weights of training back.
    trainer.test(whole, VLMDataModule(test=Drawn("test", size=2)), ckpt_path=files[-1], verbose=False)
    assert_equal(trained(whole), hand.average)


def test_an_ended_run_goes_on(fit, tmp_path):
    """Saved after the average was put into the module."""

    def keep():
        return EarlyStopCheckpoint(dirpath=str(tmp_path))

    expected, _ = fit(WeightAveraging())
    fit(WeightAveraging(), keep(), max_epochs=1)
    resumed, _ = fit(WeightAveraging(), ckpt_path=tmp_path / "latest.ckpt")
    assert_equal(trained(resumed), trained(expected))
    ended, _ = fit(WeightAveraging(), max_epochs=1)
    again, _ = fit(WeightAveraging(), max_epochs=1, ckpt_path=tmp_path / "latest.ckpt")
    assert_equal(trained(again), trained(ended))


def test_without_the_callback_a_run_goes_on_from_the_weights_of_training(fit, tmp_path):
    expected, _ = fit()
    fit(WeightAveraging(), Save(tmp_path), max_epochs=1)
    resumed, _ = fit(ckpt_path=tmp_path / "batch of step 2.ckpt")
    assert_equal(trained(resumed), trained(expected))


def test_with_the_callback_from_a_checkpoint_without_averages(fit, tmp_path):
    """The average begins with the weights that were loaded."""
    fit(Save(tmp_path), max_epochs=1)
    hand = ByHand()
    resumed, _ = fit(EMAWeightAveraging(decay=DECAY), hand, ckpt_path=tmp_path / "batch of step 2.ckpt")
    assert_equal(trained(resumed), hand.average)


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ([StochasticWeightAveraging(0.1)], "use lightning.pytorch.callbacks.WeightAveraging"),
        ([EMAWeightAveraging(), AdaptiveLoRARank()], "whose shapes change"),
    ],
)
def test_refused_at_setup(fit, callbacks, said):
    with pytest.raises(UserError, match=said):
        fit(*callbacks)


def test_a_callback_that_keeps_the_base_model_is_named(fit, tmp_path, recwarn):
    class Keeps(Callback):
        def setup(self, trainer, module, stage):
            self.module = module

        def state_dict(self):
            return {"weights": {f"module.{name}": p.detach() for name, p in self.module.named_parameters()}}

    fit(Save(tmp_path), max_epochs=1)
    assert not [one for one in recwarn if "frozen base model" in str(one.message)]
    module, _ = fit(Keeps(), Save(tmp_path), max_epochs=1)
    said = [str(one.message) for one in recwarn if "frozen base model" in str(one.message)]
    size = sum(p.nbytes for p in module.parameters() if not p.requires_grad) / 2**20
    assert len(said) == 1
    assert f"Keeps puts {size:,.1f} MiB" in said[0]
