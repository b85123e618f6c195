"""HunYuan-VL: masks, parts, and positions that don't depend on neighbours. It isn't in the matrix yet."""

import pytest
import torch
from transformers import AutoProcessor

from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.parts import parameters_by_part
from tests.support import tiny
from tests.support.packed import SAMPLES, batch_of
from tests.support.rendering import assert_like, processor_inputs, supervised
from tests.support.tiny.readers import HUNYUAN_VL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.FAMILIES, "hunyuan_vl", HUNYUAN_VL)
        return tiny.build("hunyuan_vl", tmp_path_factory.mktemp("hunyuan_vl"))


def test_inputs_are_those_of_the_processor_and_answers_are_supervised(folder):
    renderer = Renderer(AutoProcessor.from_pretrained(folder))
    for sample in SAMPLES:
        example = renderer.example(sample)
        assert_like(example, processor_inputs(renderer, sample))
        answers = [turn.parts[0].text for turn in sample.messages if turn.role == "assistant"]
        assert supervised(renderer, example) == [answer + HUNYUAN_VL.eos for answer in answers]


def test_what_merges_patches_is_the_projector(folder):
    parts = parameters_by_part(load_model(folder).model)
    assert all(".patch_merger." in name for name in parts["projector"])
    assert not any(".patch_merger." in name for name in parts["vision"])


class Loaded:
    """A model and its processor, as `batch_of` takes them."""

    def __init__(self, folder):
        self.model = load_model(folder).model.double()
        self.processor = AutoProcessor.from_pretrained(folder)

    def targets(self, batch):
        return None


def test_a_sample_has_the_same_logits_in_any_batch(folder):
    """Pictures are numbered in each sample, in training and where the model finds positions itself."""
    one = Loaded(folder)
    together = batch_of(one, SAMPLES, pack=False).inputs
    without_positions = {name: value for name, value in together.items() if name != "position_ids"}
    with torch.no_grad():
        found = one.model(**together, use_cache=False).logits
        found_itself = one.model(**without_positions, use_cache=False).logits
        for row, sample in enumerate(SAMPLES):
            alone = one.model(**batch_of(one, [sample], pack=False).inputs, use_cache=False).logits[0]
            torch.testing.assert_close(found[row, : len(alone)], alone, rtol=0, atol=1e-6)
            torch.testing.assert_close(found_itself[row, : len(alone)], alone, rtol=0, atol=1e-6)
