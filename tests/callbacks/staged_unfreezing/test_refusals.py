"""Stages that can't be right are refused, at construction or when the fit begins."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import StagedUnfreezing
from torch import nn

from tests.support.staged import GOOD

MISTAKES = {
    "no such plan": ("medicl", {}, "'medicl'; expected one of .*; did you mean 'medical'"),
    "plan in steps": ("medical", {"unit": "step"}, "unit: found 'step'; expected 'fraction'"),
    "unit": ([GOOD], {"unit": "epochs"}, "did you mean 'epoch'"),
    "none": ([], {}, "stages: found \\[\\]"),
    "not a stage": (["head"], {}, "stages\\[0\\]: found 'head'"),
    "key": ([{**GOOD, "trian": {}}], {}, "stages\\[0\\]: found 'trian'; .* did you mean 'train'"),
    "no begin": ([{"train": {"head": 1.0}}], {}, "expected one of 'at' and 'on_plateau'"),
    "two begins": ([{**GOOD, "on_plateau": {"monitor": "x"}}], {}, "expected one of 'at' and"),
    "late": ([{**GOOD, "at": 0.1}], {}, "the first stage begins with the run"),
    "order": ([GOOD, {**GOOD, "at": 0.5}, {**GOOD, "at": 0.5}], {}, "stages\\[2\\]: at: found 0.5; .* 0.5"),
    "percent": ([GOOD, {**GOOD, "at": 50}], {}, "a number in \\[0, 1\\)"),
    "half a step": ([GOOD, {**GOOD, "at": 0.5}], {"unit": "step"}, "a whole number >= 0"),
    "at nan": ([GOOD, {**GOOD, "at": math.nan}], {"unit": "epoch"}, "found nan; expected a number >= 0"),
    "at none": ([{**GOOD, "at": None}], {}, "found None"),
    "nothing trains": ([{**GOOD, "train": {}}], {}, "expected selector: scale"),
    "scale": ([{**GOOD, "train": {"head": 0}}], {}, "train\\['head'\\]: found 0; expected a number > 0"),
    "scale text": ([{**GOOD, "train": {"head": "1"}}], {}, "found '1'"),
    "warm-up": ([GOOD], {"warmup_steps": -1}, "warmup_steps: found -1"),
    "decay": ([GOOD], {"layer_decay": 1.5}, "layer_decay: found 1.5"),
}


PLATEAU_MISTAKES = {
    "monitor": ({}, "at least 'monitor'"),
    "key": ({"patiense": 3}, "found 'patiense'; .* did you mean 'patience'"),
    "mode": ({"mode": "less"}, "mode: found 'less'; expected min or max"),
    "patience": ({"patience": 0}, "patience: found 0"),
    "min_delta": ({"min_delta": -0.1}, "min_delta: found -0.1"),
    "from_best": ({"from_best": "yes"}, "from_best: found 'yes'"),
}


@pytest.mark.parametrize(("stages", "options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(stages, options, message):
    with pytest.raises(MisconfigurationException, match=message):
        StagedUnfreezing(stages, **options)


@pytest.mark.parametrize(("keys", "message"), PLATEAU_MISTAKES.values(), ids=PLATEAU_MISTAKES)
def test_plateau_mistakes(keys, message):
    keys = {"monitor": "loss", **keys} if keys else keys
    with pytest.raises(MisconfigurationException, match=message):
        StagedUnfreezing([GOOD, {"on_plateau": keys, "train": {"head": 1.0}}])


def frozen_stem(model):
    model.stem.requires_grad_(False)


def quantised_stem(model):
    model.stem[0].weight = nn.Parameter(torch.zeros(8, 1, 3, 3, dtype=torch.int8), requires_grad=False)
    model.stem[0].bias = None


def without_head(model):
    model.configure_optimizers = lambda: torch.optim.SGD(model.blocks.parameters(), lr=0.1)


def lbfgs(model):
    model.configure_optimizers = lambda: torch.optim.LBFGS(model.parameters())


ENTRIES = {
    "frozen": (frozen_stem, {}, {"stem": 1.0}, "'stem', whose 4 parameters are frozen by the module"),
    "quantised": (quantised_stem, {}, {"stem[0]": 1.0}, "quantised and can't train; give it LoRA"),
    "no optimizer": (without_head, {}, {"head": 1.0}, "found head.weight and 1 more in no optimizer"),
    "optimizer": (lbfgs, {}, {"head": 1.0}, "found optimizer LBFGS"),
    "no end": (None, {"max_epochs": -1}, {"head": 1.0}, "the run has no end"),
}


@pytest.mark.parametrize(("change", "options", "train", "message"), ENTRIES.values(), ids=ENTRIES)
def test_what_shows_when_the_fit_begins(classifier, digits, make_trainer, change, options, train, message):
    model = classifier()
    if change:
        change(model)
    trainer = make_trainer(callbacks=[StagedUnfreezing([{"at": 0, "train": train}])], **options)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(model, digits.Digits())


def test_another_callback_that_freezes_is_refused(classifier, digits, make_trainer):
    trainer = make_trainer(callbacks=[StagedUnfreezing([GOOD]), BackboneFinetuning()])
    with pytest.raises(MisconfigurationException, match="found BackboneFinetuning, which freezes"):
        trainer.fit(classifier(), digits.Digits())
