"""Pictures whose patches lie in one long row (MiniCPM-V): each sample of a batch keeps its own."""

import pytest
import torch

from lightning_vlm.data.batch.join import join_packed, join_padded
from lightning_vlm.data.batch.lengths import patches_of
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.picture_inputs import PictureInputsFinder, pictures_on_host
from tests.support.packed import SAMPLES

FAMILY = "minicpmv4_6"
PATCH = 4


@pytest.fixture
def examples(processor_of):
    """Samples with one picture, two, none, and one; sizes and numbers of slices are different."""
    renderer = Renderer(processor_of(FAMILY))
    return [renderer.example(SAMPLES[place]) for place in (0, 2, 1, 4)]


@pytest.fixture
def model(tiny_folder):
    return load_model(tiny_folder(FAMILY)).model.eval()


@pytest.mark.parametrize("join", [lambda examples: join_padded(examples, 0, "left"), join_packed])
def test_each_sample_keeps_the_features_that_it_has_alone(examples, model, join):
    joined = join(examples)
    with_pictures = [example for example in examples if "pixel_values" in example.inputs]
    assert len(with_pictures) == 3
    assert len(joined["pixel_values"]) == 1
    alone = []
    with torch.no_grad():
        together = model.model.get_image_features(joined["pixel_values"], joined["target_sizes"])
        for example in with_pictures:
            inputs = {name: example.inputs[name] for name in ("pixel_values", "target_sizes")}
            alone += model.model.get_image_features(**inputs).pooler_output
    for found, expected in zip(together.pooler_output, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (
        sum(len(features) for features in alone) == (joined["input_ids"] == model.config.image_token_id).sum()
    )
    assert patches_of(joined, PATCH) == sum(patches_of(example.inputs, PATCH) for example in examples)
    assert patches_of(joined, PATCH) == joined["target_sizes"].prod(-1).sum()


def test_a_batch_answers_as_each_sample_alone(examples, model):
    """Through the whole model, and with sizes on the host."""
    joined = join_padded(examples, model.config.text_config.pad_token_id, "right")
    with torch.no_grad():
        with pictures_on_host(model, joined, PictureInputsFinder(model)(joined)) as sizes:
            together = model(**{**joined, **sizes}).logits
        for row, example in enumerate(examples):
            alone = model(input_ids=example.input_ids[None], **example.inputs).logits[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-3, atol=1e-4)


def test_fewer_features_than_tokens_are_refused(examples, model):
    joined = join_padded(examples, 0, "right")
    height, width = joined["target_sizes"][-1].tolist()
    fewer = {
        "pixel_values": joined["pixel_values"][..., : -height * width * PATCH],
        "target_sizes": joined["target_sizes"][:-1],
    }
    pictures = PictureInputsFinder(model)(joined | fewer)
    with (
        pictures_on_host(model, joined | fewer, pictures) as sizes,
        pytest.raises(UserError, match="features of pictures, expected"),
    ):
        model(**{**joined, **fewer, **sizes})
