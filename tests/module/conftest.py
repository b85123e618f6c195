"""Tiny models, batches and Trainers for the tests of the module."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.drawn import Drawn
from tests.support import tiny
from tests.support.packed import OfList
from tests.support.quiet import QUIET


@pytest.fixture(scope="session")
def listed():
    return OfList


@pytest.fixture(scope="session")
def folder(model_folder):
    """Folder of the tiny model of a family."""
    return model_folder


@pytest.fixture(scope="session")
def module(folder):
    """A module of a tiny family, with a ready template where the family has none."""

    def make(family="llava", **options):
        torch.manual_seed(0)  # LoRA's A is random
        if family != "shipped" and tiny.FAMILIES[family].template is None:
            options.setdefault("chat_template", "plain")
        made = VLMModule(str(folder(family)), **options)
        made.configure_model()
        return made

    return make


@pytest.fixture(scope="session")
def batch_of():
    """A batch of a module: drawn pictures, or the conversations given."""

    def make(module, source=None, size=3, predict=False):
        source = source or Drawn("train", size=size)
        data = VLMDataModule(
            train=source,
            predict=source,
            batch_size=len(source),
            shuffle=False,
            processor=module.processor,
        )
        return next(iter(data.predict_dataloader() if predict else data.train_dataloader()))

    return make


@pytest.fixture(scope="session")
def words():
    """A text-only conversation."""

    def make(question="What colour is it?", answer="Red.", weight=1.0, source="words", task="chat"):
        turns = (Message("user", (Text(question),)), Message("assistant", (Text(answer),)))
        return Conversation(turns, task=task, weight=weight, source=source)

    return make


@pytest.fixture(scope="session")
def make_quiet(tmp_path_factory):
    """A quiet Trainer on the CPU."""

    def make(**options):
        given = {**QUIET, "devices": 1, "default_root_dir": tmp_path_factory.getbasetemp(), **options}
        return Trainer(**given)

    return make
