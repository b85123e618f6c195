"""Small vision-language models to train in stages."""

import pytest
import torch

from lightning_vlm import VLMModule
from tests.support.staged import FULL


@pytest.fixture(scope="module")
def vlm(model_folder):
    def make(family="smolvlm", adapt=FULL, **options):
        torch.manual_seed(0)
        if family == "llava":
            options["chat_template"] = "plain"
        made = VLMModule(str(model_folder(family)), adapt=adapt, schedule=None, **options)
        made.configure_model()
        return made

    return make
