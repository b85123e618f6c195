"""A budget of pixels is the processor's own setting: against the sizes that it really makes."""

import io

import numpy as np
import PIL.Image
import pytest

from lightning_vlm.data.batch.lengths import Ruler
from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError

SIZES = [(33, 500), (640, 480), (1000, 90), (31, 17), (300, 301)]
AREA = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "glm4v",
    "glm46v",
    "paddleocr_vl",
    "hunyuan_vl",
    "ernie4_5_vl_moe",
]
TILES = ["internvl", "aya_vision", "cohere2_vision"]
EDGE = ["pixtral", "mistral3", "lighton_ocr"]
FIXED = ["llava", "paligemma", "gemma3", "smolvlm", "mllama", "got_ocr2", "lfm2_vl", "gemma4"]


def chat_about(size):
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    ask = Message("user", (Image(data=file.getvalue()), Text("What is this?")))
    return Conversation((ask, Message("assistant", (Text("A cat."),))))


def areas(processor):
    """How many pixels the model sees of a picture of each size, by what the processor makes."""
    renderer = Renderer(processor)
    for size in SIZES:
        conversation = chat_about(size)
        example = renderer.example(conversation)
        assert Ruler(renderer).length(conversation).tokens == len(example.input_ids)
        grid = example.inputs.get("image_grid_thw")
        if grid is not None:
            yield int(grid.prod()) * processor.image_processor.patch_size**2
        elif "image_sizes" in example.inputs:
            yield int(example.inputs["image_sizes"].prod())
        else:
            tiles = len(example.inputs["pixel_values"].flatten(0, -4))
            yield (tiles - (tiles > 1)) * example.inputs["pixel_values"][0, 0].numel()


@pytest.mark.parametrize("name", AREA)
def test_pictures_have_as_many_pixels_as_the_budget_allows(processor_of, name):
    processor = processor_of(name)
    PixelBudget(least=20_000, most=40_000).apply(processor)
    after = list(areas(processor))
    assert 20_000 <= min(after) <= max(after) <= 40_000
    PixelBudget(most=80_000).apply(processor)
    assert max(areas(processor)) > 60_000


@pytest.mark.parametrize("name", EDGE)
def test_no_picture_is_larger_than_the_budget(processor_of, name):
    processor = processor_of(name)
    PixelBudget(most=3500).apply(processor)
    assert 1500 < max(areas(processor)) <= 3500
    PixelBudget(most=7100).apply(processor)
    assert 4000 < max(areas(processor)) <= 7100


@pytest.mark.parametrize("name", TILES)
def test_tiles_are_as_many_as_the_pixels_are_enough_for(processor_of, name):
    processor = processor_of(name)
    size = processor.image_processor.size["height"]
    PixelBudget(most=3 * size**2 - 1).apply(processor)
    assert max(areas(processor)) == 2 * size**2
    if name == "cohere2_vision":
        return
    PixelBudget(least=3 * size**2 + 1, most=6 * size**2).apply(processor)
    found = list(areas(processor))
    assert 4 * size**2 <= min(found) <= max(found) <= 6 * size**2


@pytest.mark.parametrize("name", FIXED)
def test_a_processor_without_such_a_setting_is_refused(processor_of, name):
    with pytest.raises(UserError, match=r"data.max_pixels: \w+ resizes pictures by .*; set"):
        PixelBudget(most=10_000).apply(processor_of(name))


def test_a_budget_that_makes_no_sense_is_refused(processor_of):
    with pytest.raises(UserError, match=r"data.max_pixels: found 0; expected 1 or more"):
        PixelBudget(most=0).check()
    with pytest.raises(UserError, match=r"data.min_pixels: found 9; expected at most data.max_pixels, 4"):
        PixelBudget(9, 4).check()
    with pytest.raises(UserError, match=r"data.max_pixels: found 9; expected enough for one patch of 28×28"):
        PixelBudget(most=9).apply(processor_of("qwen2_vl"))
    with pytest.raises(UserError, match=r"data.min_pixels: PixtralImageProcessor never enlarges"):
        PixelBudget(least=9).apply(processor_of("pixtral"))


def test_a_rule_that_pays_no_heed_to_the_least_is_refused(processor_of):
    """Cohere's cuts a small picture into one tile whatever `min_patches` is."""
    with pytest.raises(UserError, match=r"data.min_pixels: Cohere2VisionImageProcessor never enlarges"):
        PixelBudget(least=9).apply(processor_of("cohere2_vision"))


@pytest.mark.parametrize("name", ["qwen3_vl", "pixtral", "internvl"])
def test_a_saved_processor_has_the_budget(processor_of, tmp_path, name):
    from transformers import AutoProcessor

    processor = processor_of(name)
    PixelBudget(most=3500).apply(processor)
    processor.save_pretrained(tmp_path)
    assert list(areas(AutoProcessor.from_pretrained(tmp_path))) == list(areas(processor))
