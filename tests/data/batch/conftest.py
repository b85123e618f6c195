"""Fixtures of the tests of batches."""

import pytest
from transformers import AutoModelForImageTextToText

from lightning_vlm.compat import picture_numbers
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.models.precision import give_pixels_their_dtype
from tests.support.tiny import FAMILIES


@pytest.fixture(scope="module")
def tiny(model_folder, processor_of):
    """A tiny model of a family, and a renderer for it."""

    def load(family):
        model = AutoModelForImageTextToText.from_pretrained(model_folder(family)).eval()
        picture_numbers.install(model)
        give_pixels_their_dtype(model)
        return model, Renderer(processor_of(family, "plain" if FAMILIES[family].template is None else None))

    return load
