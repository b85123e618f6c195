"""A run that is killed and goes on from its last checkpoint is the uninterrupted run, bit for bit."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.multiprocessing import ProcessExitedException

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from tests.support import tiny
from tests.support.dead import DEAD
from tests.support.ranks import call_on_ranks

PLANS = {
    "lora": {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}},
    "full": {"projector": "full", "language": "full"},
}


class Kill(Callback):
    """As a machine that fails: after a batch, nothing is cleaned up."""

    def __init__(self, at):
        self.at, self.batches = at, 0

    def on_train_batch_end(self, *_):
        self.batches += 1
        if self.batches == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(module, make_quiet, family, plan, folder, workers=0, ranks=1, kill=None, resume=False, samples=14):
    """Two epochs of seven micro-batches of 2, in steps of 2 micro-batches; a checkpoint after each step."""
    torch.set_num_threads(1)
    torch.rand(3 if resume else 1)  # chance stands elsewhere in a new process
    seed_everything(1)
    keep = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = make_quiet(
        accumulate_grad_batches=2,
        enable_checkpointing=True,
        callbacks=[keep, *([] if kill is None else [Kill(kill)])],
        max_epochs=2,
        **({"strategy": "ddp", "devices": ranks} if ranks > 1 else {}),
    )
    one = module(family, adapt=PLANS[plan])
    data = VLMDataModule(train=Drawn("train", size=samples), batch_size=2, num_workers=workers)
    trainer.fit(one, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return {name: p.detach().clone() for name, p in one.named_parameters()}


def in_processes(ranks=1, **options):
    """What each rank ends with."""
    return call_on_ranks(lambda: run(ranks=ranks, **options), ranks=ranks)


CASES = {  # after 7 micro-batches an epoch ends; steps end at 2, 4, 6, 7, 9, 11, 13, 14
    "lora": {"plan": "lora", "kill": 3},
    "full": {"plan": "full", "kill": 12},
    "lora, 2 workers": {"plan": "lora", "workers": 2, "kill": 10},
    "full, 2 workers": {"plan": "full", "workers": 2, "kill": 5},
    "lora, 2 processes": {"plan": "lora", "ranks": 2, "samples": 26, "kill": 6, "again": 2},
    "full, 2 processes, 2 workers": {"plan": "full", "ranks": 2, "workers": 2, "samples": 26, "kill": 12},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_killed_anywhere(module, make_quiet, tmp_path, case):
    """In either epoch, with half a step done, and with a whole one done but not saved (6).

    Killed again 2 batches later, a run has last saved in the middle of a step: Lightning's callback saves
    after the first batch of a resumed run.
    """
    options = {"module": module, "make_quiet": make_quiet, "family": "llava", **case}
    kill, again = options.pop("kill"), options.pop("again", None)
    (expected, *_) = in_processes(folder=tmp_path / "whole", **options)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        in_processes(folder=tmp_path / "killed", kill=kill, **options)
    if again is not None:
        with pytest.raises(ProcessExitedException, match="SIGKILL"):
            in_processes(folder=tmp_path / "killed", kill=again, resume=True, **options)
    for rank, resumed in enumerate(in_processes(folder=tmp_path / "killed", resume=True, **options)):
        for name, weight in expected.items():
            assert torch.equal(resumed[name], weight), (rank, name)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_resumes(module, make_quiet, tmp_path, family):
    """In the middle of an epoch."""
    saved = tmp_path / "saved"

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2 and not (saved / "last.ckpt").exists():
                trainer.save_checkpoint(saved / "last.ckpt")

    def fit(**options):
        seed_everything(1)
        trainer = make_quiet(accumulate_grad_batches=2, max_epochs=1, callbacks=[Stop()])
        plan = PLANS["lora"] if family != "gemma3" else {"language": PLANS["lora"]["language"]}
        one = module(family, adapt=plan, no_gradient_needed=DEAD.get(family))
        data = VLMDataModule(train=Drawn("train", size=7, tasks=["vqa", "caption"]), batch_size=1)
        trainer.fit(one, data, weights_only=True, **options)
        return {name: p.detach().clone() for name, p in one.named_parameters() if p.requires_grad}

    whole = fit()
    resumed = fit(ckpt_path=saved / "last.ckpt")
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
