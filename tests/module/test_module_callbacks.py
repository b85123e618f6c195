"""The callbacks that a module brings along are there in each run, once, and can't be left out unnoticed."""

import gc
import weakref

import pytest

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError


def test_a_subclass_that_leaves_them_out_is_refused(folder, make_quiet):
    class Own(VLMModule):
        def configure_callbacks(self):
            return []

    data = VLMDataModule(train=Drawn("train", size=2), batch_size=2)
    with pytest.raises(UserError, match=r"return \[\*super\(\)\.configure_callbacks\(\), \.\.\.\]"):
        make_quiet(max_steps=1).fit(Own(str(folder("llava")), chat_template="plain"), data)


def test_one_trainer_runs_the_same_module_twice_and_then_another_one(module, make_quiet, caplog):
    data = VLMDataModule(train=Drawn("train", size=2), val=Drawn("val", size=2), batch_size=2)
    trainer = make_quiet(max_steps=1, limit_val_batches=0)
    one, other = module("llava"), module("llava")
    trainer.fit(one, data)
    trainer.limit_val_batches = 1.0
    trainer.validate(one, data, verbose=False)
    kinds = [type(callback) for callback in trainer.callbacks]
    assert len(set(kinds)) == len(kinds)
    assert not one.callbacks.missing_in(trainer)
    assert "override" not in caplog.text
    trainer.validate(other, data, verbose=False)
    assert not other.callbacks.missing_in(trainer)
    assert one.callbacks.evaluation not in trainer.callbacks


def test_an_unloaded_model_is_freed(module):
    one = module("llava")
    model = weakref.ref(one.model)
    one.unload_model()
    gc.collect()
    assert model() is None
