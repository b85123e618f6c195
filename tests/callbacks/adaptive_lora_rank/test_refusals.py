"""What cannot be is refused before the first step."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.selectors import SelectorError

from tests.support.lora_modules import (
    Module,
    Net,
    quiet,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_rank": 3}, "min_rank, max_rank: found 3 and 12"),
        ({"budget": 0}, "budget: found 0; expected 1 or more"),
        ({"importance": "magnitude"}, "importance: found 'magnitude'"),
        ({"unit": "bytes"}, "unit: found 'bytes'"),
        ({"start": 0}, "start: found 0"),
        ({"every": 1.5}, "every: found 1.5"),
        ({"until": -1}, "until: found -1"),
        ({"groups": {"head": 0.0}}, r"groups\['head'\]: found 0.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        quiet(**options)


@pytest.mark.parametrize(
    ("module", "options", "run", "error", "message"),
    [
        ({"target_modules": []}, {}, {}, MisconfigurationException, "found no linear layer with LoRA"),
        ({"use_dora": True}, {}, {}, MisconfigurationException, "up: found DoRA"),
        (
            {},
            {"budget": 13},
            {},
            MisconfigurationException,
            "found 13, but min_rank 2 for 7 modules costs 14",
        ),
        ({}, {"groups": {"model": 1.0, "*text": 1.0}}, {}, MisconfigurationException, "in 'model' and "),
        ({}, {"groups": {"*text": 1.0}}, {}, MisconfigurationException, "vision.0.up in none of them"),
        (
            {},
            {"groups": {"*head.base_layer": 1.0}},
            {},
            MisconfigurationException,
            "found no LoRA layer in it",
        ),
        ({}, {"groups": {"*tex": 1.0}}, {}, SelectorError, "tex"),
        (
            {},
            {"groups": {"*vision": 1.0, "*text": 9.0, "*head": 9.0}},
            {},
            MisconfigurationException,
            r"groups\['\*vision'\]: budget: found 1",
        ),
        ({}, {"until": 13}, {}, MisconfigurationException, "until: found 13, but the run has 12 steps"),
        (
            {},
            {"start": 10},
            {},
            MisconfigurationException,
            r"start: found step 10, which is after until \(9\)",
        ),
        (
            {},
            {"until": 0.5},
            {"max_epochs": -1},
            MisconfigurationException,
            "found 0.5, a share of a run that has no end",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(fit, module, options, run, error, message):
    made = Module(**module) if module.get("target_modules") != [] else Bare()
    steps = []
    made.training_step = lambda *_: steps.append(1)
    with pytest.raises(error, match=message):
        fit(made, quiet(**options), **run)
    assert not steps
    assert "on_load_checkpoint" not in vars(made)


class Bare(Module):
    def __init__(self):
        LightningModule.__init__(self)
        self.model = Net()
        self.optimizer = torch.optim.AdamW
