"""Training in stages on two ranks is training on one."""

import gc
import weakref
from itertools import pairwise

import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import StagedUnfreezing
from torch.optim import lr_scheduler as schedulers

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from tests.support.staged import (
    OPTIONS,
    STAGES,
    Record,
    assert_same,
    by_hand,
    sgd,
    without_batch_statistics,
)


class Wrappers(Callback):
    """How many DDP wrappers and reducers there were, and how many are left of them."""

    def __init__(self):
        self.seen, self.left = [], []

    def on_train_batch_end(self, trainer, *_):
        wrapper = trainer.strategy.model
        if not self.seen or self.seen[-1][0]() is not wrapper:
            self.seen.append((weakref.ref(wrapper), weakref.ref(wrapper.reducer)))
        self.left.append(sum(ref() is not None for pair in self.seen for ref in pair))


def test_two_processes_are_one(classifier, digits, make_trainer, on_two_ranks):
    """Replicas are bit-equal after each batch, and equal one process with both batches, to rounding."""

    def on_rank():
        gc.disable()  # the old reducer must go at once
        model, record, wrappers = without_batch_statistics(classifier(dropout=0.0)), Record(), Wrappers()
        model.optimizer = sgd
        trainer = make_trainer(
            devices=2,
            strategy="ddp",  # which never looks for unused parameters
            accumulate_grad_batches=2,
            max_steps=8,
            callbacks=[StagedUnfreezing(STAGES, **OPTIONS), record, wrappers],
            limit_val_batches=0,
        )
        trainer.fit(model, digits.Digits(stateful=False))
        trained = [one.requires_grad for one in model.parameters()]
        left, wrapped = max(wrappers.left), len(wrappers.seen)
        return {
            "batches": record.batches,
            "states": record.states,
            "left": left,
            "wrapped": wrapped,
            "trained": trained,
        }

    first, second = on_two_ranks(on_rank)
    for one, other in zip(first["states"], second["states"], strict=True):
        assert_same(one, other)
    assert (first["wrapped"], first["left"]) == (3, 2)
    assert all(first["trained"])  # as the module had it
    batches = [
        [torch.cat(pair) for pair in zip(*both, strict=True)]
        for both in zip(first["batches"], second["batches"], strict=True)
    ]
    model = without_batch_statistics(classifier(dropout=0.0))
    expected = by_hand(model, batches, sgd, lambda o: schedulers.ConstantLR(o, 1.0), accumulate=2)
    for state, wanted in zip(first["states"], expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)
    assert len({state["head.weight"].sum().item() for state in first["states"]}) == 1 + 3 + 2


def test_processes_that_see_different_metrics_agree(classifier, digits, make_trainer, on_two_ranks):
    class Unsynced(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("score", 1.0 if trainer.global_rank == 0 else 1.0 - 0.1 * trainer.global_step)

    def on_rank():
        stages = [
            {"at": 0, "train": {"head": 1.0}},
            {"on_plateau": {"monitor": "score", "patience": 2, "from_best": True}, "train": {"blocks": 1.0}},
        ]
        model, staged, record = classifier(), StagedUnfreezing(stages, "step"), Record()
        trainer = make_trainer(
            devices=2,
            strategy="ddp",
            val_check_interval=1,
            max_steps=6,
            callbacks=[Unsynced(), staged, record],
        )
        trainer.fit(model, digits.Digits(stateful=False))
        weights = [torch.cat([s[n].flatten() for n, _ in model.named_parameters()]) for s in record.states]
        return {"begun": staged.state_dict()["begun"], "weights": weights}

    first, second = on_two_ranks(on_rank)
    assert first["begun"] == second["begun"] == {1: 3}
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other)


def test_a_vlm_in_two_processes(vlm, make_trainer, on_two_ranks):
    def on_rank():
        stages = [
            {"at": 0, "train": {"projector": 1.0}},
            {"at": 2, "train": {"language": 1.0, "vision": 0.1}},
        ]
        module, data = vlm("smolvlm"), VLMDataModule(train=Drawn("train", size=16), batch_size=2)
        record = Record()
        trainer = make_trainer(
            max_steps=4,
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
            callbacks=[StagedUnfreezing(stages, "step"), record],
            limit_val_batches=0,
        )
        trainer.fit(module, data)
        return record.states

    first, second = on_two_ranks(on_rank)
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)
    moved = [
        {name.split(".")[2] for name in one if not torch.equal(one[name], two[name])}
        for one, two in pairwise(first)
    ]
    assert moved == [{"connector"}, {"text_model", "vision_model"}, {"text_model", "vision_model"}]
