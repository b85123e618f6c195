"""NaN and infinity without a NonFiniteGuard are said; with one, nothing beside it takes them in."""

import copy
import re
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning_vlm_callbacks import EarlyStopCheckpoint, NonFiniteGuard
from lightning_vlm_callbacks.nonfinite_guard.callback import NonFiniteError

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.losses.tasks import TaskLog, make_task_weights
from lightning_vlm.optim import Constant
from lightning_vlm.step import StepLoss
from tests.support.packed import OfList
from tools.reliability.planted_faults import Fault, PlantedFault

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)
PLAN = {"projector": "full", "language": {"lora": {"r": 2}}}
PIXELS = Fault("pixels", "hook", "nan")
SAID = re.compile(r"train/loss is |after step ")
GRADIENT = Fault("on_after_backward", "hook", "nan")


@pytest.fixture(scope="module")
def fit(module, make_quiet):
    base = module("llava", adapt=PLAN, schedule=Constant(), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    assert base.processor

    def run(*callbacks, unseen=None, **options):
        """Four steps of one sample each, or three without that of step `unseen`."""
        drawn = [sample for number, sample in enumerate(Drawn("train", size=4)) if number != unseen]
        mine = copy.deepcopy(base)
        data = VLMDataModule(train=OfList(drawn), val=Drawn("val", size=2), batch_size=1, shuffle=False)
        trainer = make_quiet(max_epochs=1, callbacks=list(callbacks), **{"limit_val_batches": 0, **options})
        trainer.fit(mine, data)
        return mine, trainer

    return run


def trained(module):
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def test_a_loss_that_was_trained_on_is_said_once(fit, recwarn):
    fit(PlantedFault(PIXELS, 1))
    of_loss, of_weights = [str(one.message) for one in recwarn if SAID.match(str(one.message))]
    assert of_loss == (
        "train/loss is nan at step 1, which was trained on; add NonFiniteGuard to trainer.callbacks, which "
        "skips such steps and names the module and the samples"
    )
    assert of_weights.startswith("after step 4 NaN or infinity is in ")


@pytest.mark.parametrize("fault", [PIXELS, GRADIENT], ids=str)
def test_bad_weights_of_the_last_step_are_said(fit, fault):
    """No later loss shows them."""
    with pytest.warns(UserWarning, match=r"after step 4 NaN or infinity is in model\.model\..*weight.*Guard"):
        fit(PlantedFault(fault, 3))


@pytest.mark.parametrize("validates", [False, True])
def test_bad_weights_in_a_checkpoint_are_said(fit, tmp_path, recwarn, validates):
    """The gradient of step 1 is bad; the loss of step 2 would show it. A validation may come before."""
    keeper = EarlyStopCheckpoint("val/loss" if validates else None, dirpath=str(tmp_path), every_n_steps=2)
    options = {"limit_val_batches": 1, "val_check_interval": 2} if validates else {}
    fit(PlantedFault(GRADIENT, 1), keeper, enable_checkpointing=True, **options)
    (said,) = [str(one.message) for one in recwarn if "add NonFiniteGuard" in str(one.message)]
    assert said.startswith("after step 2 NaN or infinity is in ")


class SpoilValidation(Callback):
    """NaN into the pictures of one batch of the second validation."""

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == 2 and batch_idx == 1:
            batch.inputs["pixel_values"].view(-1)[0] = torch.nan


def test_a_sample_of_the_validation_is_named_and_never_best(fit, tmp_path):
    keeper = EarlyStopCheckpoint("val/loss", dirpath=str(tmp_path))
    options = {"limit_val_batches": 2, "val_check_interval": 1, "enable_checkpointing": True}
    name = Drawn("val", size=2)[1].source
    with pytest.warns(
        UserWarning, match=f"val/loss is nan, as the loss isn't finite in 1 of 2 samples: {name}"
    ):
        module, _ = fit(keeper, SpoilValidation(), **options)
    assert keeper.state_dict()["best"] < 10
    assert all(weight.isfinite().all() for weight in trained(module).values())
    expected = EarlyStopCheckpoint("val/loss", dirpath=str(tmp_path / "other"))
    fit(expected, **options)
    assert keeper.state_dict()["best"] == expected.state_dict()["best"]


def test_an_average_of_weights_does_not_count_a_skipped_step(fit, tmp_path):
    """Lightning puts the average into the module at the end."""
    found, _ = fit(
        EMAWeightAveraging(decay=0.5), NonFiniteGuard(dirpath=str(tmp_path)), PlantedFault(PIXELS, 2)
    )
    expected, _ = fit(EMAWeightAveraging(decay=0.5), unseen=2)
    for name, weight in trained(expected).items():
        assert torch.equal(found.get_parameter(name), weight), name


class SpoilState(Callback):
    """NaN into what the optimizer keeps of its first weight, behind step 1."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1:
            state = next(iter(trainer.optimizers[0].state.values()))
            state["exp_avg"].view(-1)[0] = torch.nan


def test_a_spoiled_optimizer_is_named_and_rolled_back(fit, tmp_path):
    """The weights that it makes are bad before any loss is."""
    guard = NonFiniteGuard(dirpath=str(tmp_path / "skip"), max_in_a_row=1)
    with pytest.raises(NonFiniteError, match=r"step 3: the loss .* infinity is in model\.model\..* itself: "):
        fit(SpoilState(), guard)
    back = NonFiniteGuard("rollback", dirpath=str(tmp_path), snapshot_every_n_steps=1)
    module, trainer = fit(SpoilState(), back)
    assert all(weight.isfinite().all() for weight in trained(module).values())
    assert trainer.global_step == 4


def test_weights_of_tokens_that_are_nan_are_no_step_of_nothing():
    """A rank without targets would skip a step that the others make."""
    loss = StepLoss()
    loss.add(torch.ones(()), torch.ones(1), torch.full((1,), torch.nan))
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    found = loss.divide([weight], torch.ones(1), accumulate=1, world=1)
    assert not found.empty
    assert found.loss.isnan()
    assert weight.grad.isnan().all()


def test_a_step_of_nan_is_not_in_the_mean_of_those_around_it(make_quiet):
    trainer = make_quiet(log_every_n_steps=3)
    log = TaskLog(make_task_weights(None, ["vqa", "ocr"]))
    for value in (4.0, torch.nan):
        log.add(torch.tensor([value, 3.0]), torch.tensor([2.0, 1.0]), trainer)
    assert log.state_dict()["since"].tolist() == [[4.0, 6.0], [2.0, 2.0]]
