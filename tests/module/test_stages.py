"""A run in stages: each stage is what a fit of its own would be, and none of its seams shows."""

import copy
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import AdamW

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.stages.settings import StageData
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.optim import Constant, Linear
from lightning_vlm.training.stages.stage import Stage
from tests.module.test_seams import HARD, SaveAtHooks, Trace, rendered_once  # noqa: F401

FIRST, SECOND, VAL = (Drawn(split, size=size) for split, size in (("train", 7), ("test", 10), ("val", 2)))
PARTS = {"projector": "full", "language": "full"}
STAGES = [
    Stage(name="align", steps=5, train=["projector"], learning_rate=1e-2, schedule=Linear()),
    Stage(
        name="tune",
        epochs=1.5,
        accumulate=3,
        reset_optimizer=True,
        learning_rates={"projector": 1e-3},
        data=StageData(train=SECOND, batch_size=1, seed=3),
    ),
]


@pytest.fixture(scope="module")
def base(module):
    made = module("llava", adapt=PARTS, schedule=Constant())
    assert made.processor
    return made


@pytest.fixture(scope="module")
def fit(base, make_quiet, rendered_once):  # noqa: F811
    """Fits a copy of a module; gives it and the trace."""

    def run(stages, callbacks=(), module=None, ckpt_path=None, trainer_options=None, **data):
        seed_everything(1, verbose=False)
        mine, trace = copy.deepcopy(module or base), Trace()
        given = {"enable_checkpointing": True, "max_epochs": -1, **(trainer_options or {})}
        source = VLMDataModule(**{"train": FIRST, "val": VAL, "batch_size": 2, **data})
        if stages:
            source.set_stages(stages)
        trainer = make_quiet(callbacks=[trace, *callbacks], **given)
        trainer.fit(mine, source, ckpt_path=ckpt_path, weights_only=True)
        return mine, trace

    return run


def weights(module):
    return {name: one.detach().clone() for name, one in module.named_parameters() if one.requires_grad}


def test_each_is_as_a_fit_of_its_own(fit, base, module):
    """Weights to rounding, and the same samples in the same batches."""
    whole, trace = fit(STAGES)
    alone = module("llava", adapt={"projector": "full"}, schedule=Linear(), optimizer=partial(AdamW, lr=1e-2))
    first, of_first = fit(None, module=alone, trainer_options={"max_steps": 5})
    then = copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in weights(first).items():
            then.get_parameter(name).copy_(weight)
    then.learning_rates = {"projector": 1e-3}
    options = {"max_steps": 6, "accumulate_grad_batches": 3}
    of_its_own = {"train": SECOND, "batch_size": 1, "seed": 3}
    second, of_second = fit(None, module=then, trainer_options=options, **of_its_own)
    seen = [batch[2:] for batch in trace.batches]
    assert seen == [batch[2:] for batch in of_first.batches + of_second.batches]
    assert len(seen) == 5 + 10 + 6
    for name, weight in weights(second).items():
        assert torch.allclose(whole.get_parameter(name), weight, rtol=1e-5, atol=1e-7), name
        moved = (whole.get_parameter(name) - base.get_parameter(name)).abs().max()
        assert moved > 1e-4, name


KINDS = {
    "padded": {},
    "drawn by loss": {"data": {"sampling": HARD}},
    "packed": {"data": {"batching": "packed", "max_tokens": 200}},
    "2 workers": {"data": {"num_workers": 2}, "hooks": ("on_train_batch_end", "on_train_epoch_end")},
    "validated inside windows": {"trainer_options": {"val_check_interval": 3}},
}
HOOKS = ("on_train_epoch_start", "on_before_backward", "on_train_batch_end", "on_train_epoch_end")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_resumes_from_everywhere(fit, tmp_path, kind):
    """Saved at each hook of each batch, those at seams too."""
    options = dict(kind)
    hooks, data = options.pop("hooks", HOOKS), options.pop("data", {})
    batch = {} if "batching" not in data else {"batch_size": None}
    second = StageData(train=SECOND, seed=3, **(batch or {"batch_size": 1}))
    stages = [
        replace(STAGES[0], steps=3),
        replace(STAGES[1], epochs=None, steps=5, reset_optimizer=False, data=second),
        Stage(name="end", steps=2, train={"language": 0.5}, token_weights=KindWeights(response=0.5)),
    ]
    saver = SaveAtHooks(tmp_path, hooks, 99)
    expected, trace = fit(
        stages, [saver, ModelCheckpoint(tmp_path, every_n_train_steps=1)], **options, **data
    )
    wrong = []
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) > 20
    # Of the seams behind batch 3 and 16 all; of the others some, at each hook in turn.
    near = [file for file in files if re.search(r"after batch (3|4|16|17)\.", file.name)]
    for file in sorted({*near, *files[::5]} if not kind else {*near[::3], *files[::11]}):
        resumed, again = fit(stages, ckpt_path=file, **options, **data)
        left = {name: getattr(again, name) for name in ("batches", "validations")}
        whole = {name: getattr(trace, name)[-len(seen) :] if seen else [] for name, seen in left.items()}
        mine = weights(resumed)
        if left != whole or not all(torch.equal(mine[name], one) for name, one in weights(expected).items()):
            wrong.append(file.name)
    assert not wrong
