"""A run that goes on with another number of processes has the samples and weights of the whole run."""

import warnings

import pytest
from lightning.pytorch import Callback, seed_everything
from lightning_vlm_callbacks import EarlyStopCheckpoint

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from tests.support.ranks import call_on_ranks
from tools.reliability.elastic import CASES, MOST, compare


@pytest.mark.parametrize(("case", "ranks"), [("padded", (1, 2, 4, 1)), ("by task, packed", (2, 1))])
def test_killed_and_resumed_on_other_processes(folder, tmp_path, case, ranks):
    """The command has more cases, with workers too."""
    found = compare(CASES[case], ranks, folder("llava"), tmp_path)
    assert found.same_order
    assert found.difference < MOST


class Said(Callback):
    """Keeps counts as a run begins."""

    def on_train_start(self, trainer, *_):
        self.counts = trainer.fit_loop.epoch_loop.batch_progress.current.ready


@pytest.fixture(scope="module")
def fit(module, make_quiet, tmp_path_factory):
    """A run of 2 of the 3 steps of an epoch, saved with EarlyStopCheckpoint; and runs from there on."""
    saved = tmp_path_factory.mktemp("saved")

    def run(path=None, batch_size=2, **options):
        seed_everything(1, verbose=False)
        said = Said()
        folder = saved if path is None else tmp_path_factory.mktemp("resumed")
        keep = EarlyStopCheckpoint(dirpath=str(folder), every_n_steps=1)
        given = {"max_steps": 2, "max_epochs": 1, "accumulate_grad_batches": 2, "val_check_interval": 2}
        trainer = make_quiet(enable_checkpointing=True, callbacks=[keep, said], **{**given, **options})
        data = VLMDataModule(train=Drawn("train", size=12), val=Drawn("val", size=2), batch_size=batch_size)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module("llava"), data, ckpt_path=path, weights_only=True)
        lines = [str(one.message) for one in caught]
        return said.counts, [line for line in lines if "EarlyStop" in line or "resumed" in line]

    run()
    return lambda **options: run(saved / "latest.ckpt", max_steps=-1, **options)


def test_what_changes_is_said(fit):
    """Two processes with a step of twice the size; 8 samples are behind them."""

    def on_rank():
        return fit(strategy="ddp", devices=2, limit_val_batches=0)

    (counts, said), _ = call_on_ranks(on_rank)
    assert counts == 2
    begin = "resumed with a change: "
    assert said == [
        f"{begin}an optimizer step has 8 samples, had 4; trainer.accumulate_grad_batches 1 keeps it",
        f"{begin}validation comes every 8 samples, was every 4; trainer.val_check_interval counts batches of "
        "one process; 1 keeps it",
        f"{begin}the number of processes is 2, was 1",
    ]
    (counts, said), _ = call_on_ranks(
        lambda: fit(
            strategy="ddp",
            devices=2,
            accumulate_grad_batches=1,
            val_check_interval=1,
            limit_val_batches=0,
            limit_train_batches=3,
        )
    )
    assert said == [f"{begin}the number of optimizer steps in the whole run is 3, was 2"]  # of `max_steps`


def test_a_place_where_no_batch_begins_is_refused(fit):
    says = (
        r"can't resume behind 8 samples of an epoch with 3 samples in the batches of all processes together "
        r"\(1 process × 2 micro-batches × 3 samples, 1 process × 2 .*\); "
        "trainer.accumulate_grad_batches 2 with data.batch_size 2 keeps it"
    )
    with pytest.raises(UserError, match=says):
        fit(batch_size=3)
