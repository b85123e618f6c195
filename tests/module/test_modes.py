"""What trains is in train mode and the rest in eval mode at each forward, whatever a project does."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn


class Mischief(Callback):
    """Calls something on the module at each epoch's or batch's start."""

    def __init__(self, call, hook):
        self.call = call
        setattr(self, hook, lambda trainer, module, *_: self.call(module))


CALLS = {
    "train": lambda module: module.train(),
    "eval": lambda module: module.eval(),
    "eval of the language model": lambda module: module.model.model.language_model.eval(),
    "train of the vision tower": lambda module: module.model.model.vision_tower.train(),
}


@pytest.fixture(scope="module")
def run(module, make_quiet):
    def make(*callbacks):
        plan = {"language": {"lora": {"r": 4, "dropout": 0.2}}}
        one = module("llava", adapt=plan)
        attention = [part for part in one.model.model.vision_tower.modules() if hasattr(part, "dropout")]
        assert attention
        for part in attention:
            part.dropout = 0.5
        trainer = make_quiet(max_epochs=2, callbacks=list(callbacks))
        torch.manual_seed(0)
        trainer.fit(one, VLMDataModule(train=Drawn(size=4), val=Drawn("val", size=2), batch_size=2))
        return {name: weight.detach() for name, weight in one.named_parameters() if weight.requires_grad}

    return make


@pytest.fixture(scope="module")
def undisturbed(run):
    return run()


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start"])
@pytest.mark.parametrize("call", CALLS)
def test_a_project_that_changes_modes(run, undisturbed, call, hook):
    for name, weight in run(Mischief(CALLS[call], hook)).items():
        assert torch.equal(weight, undisturbed[name]), name
