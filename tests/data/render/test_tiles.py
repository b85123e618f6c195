"""Pictures of several numbers of tiles in one sample, which Perception LM's processor cannot join."""

import pytest
import torch

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from lightning_vlm.models.loading.load import load_model
from tests.support.clips import TALKS
from tests.support.packed import SAMPLES

FAMILY = "perception_lm"
TWO_PICTURES = SAMPLES[2]


@pytest.fixture
def renderer(processor_of):
    return Renderer(processor_of(FAMILY))


@pytest.fixture
def pictures():
    parts = TWO_PICTURES.messages[0].parts
    return [load_image(part, "", "") for part in parts if isinstance(part, Image)]


def test_tiles_are_those_of_each_picture_in_turn(renderer, pictures):
    example = renderer.example(TWO_PICTURES)
    own = renderer.processor(text=["<|image|><|image|>"], images=pictures)  # lists, which tensors can't be
    tiles = [len(each) for each in own["pixel_values"]]
    assert tiles == [5, 3]
    assert torch.equal(example.inputs["pixel_values"][:, 0], torch.cat(own["pixel_values"]))
    assert (example.kinds == Kind.IMAGE).sum() == own["input_ids"][0].count(renderer.processor.image_token_id)
    assert (example.kinds == Kind.IMAGE).sum() == 4 * sum(tiles)


def test_each_picture_gets_the_features_that_it_has_alone(renderer, pictures, model_folder):
    model = load_model(model_folder(FAMILY)).model.eval()
    together = renderer.example(TWO_PICTURES).inputs["pixel_values"]
    alone = [
        renderer.processor(text=["<|image|>"], images=[one], return_tensors="pt").pixel_values
        for one in pictures
    ]
    with torch.no_grad():
        found = model.model.get_image_features(together).pooler_output
        expected = [model.model.get_image_features(one).pooler_output for one in alone]
    torch.testing.assert_close(found, torch.cat(expected))


def test_videos_are_refused(renderer):
    with pytest.raises(DataError, match=r"^videos.jsonl:1: .*pictures only; .* a model that"):
        renderer.example(TALKS["one"])
