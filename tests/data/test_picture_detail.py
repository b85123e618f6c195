"""Pictures get as many pixels as they need, their boxes stay where they are, and lengths are known."""

import io

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from lightning_vlm.data.batch.lengths import Ruler
from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Text
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.picture_detail import pixels_needed, shrunk_to_detail
from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.errors import UserError
from lightning_vlm.export.write import words_of_pictures
from tests.support.packed import OfList

SIZE = (420, 280)
BUDGET = {"min_pixels": 3136, "max_pixels": 100_352, "pixels_by_detail": True}


def waves(period):
    columns = 128 + 100 * np.sin(np.arange(SIZE[0]) * 2 * np.pi / period)
    grey = np.repeat(columns[None].astype(np.uint8), SIZE[1], 0)
    return PIL.Image.fromarray(grey).convert("RGB")


def chat_about(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    box = Box((42, 70, 210, 140), pixels=True)
    ask = Message("user", (Image(data=file.getvalue()), Text("Where is it?")))
    return Conversation((ask, Message("assistant", (box,))))


def test_finer_waves_need_more_pixels():
    found = [pixels_needed(waves(period), 500, 100_000) for period in (400, 100, 20, 6, 2.1)]
    assert found == sorted(found)
    assert found[0] == 500 < found[2] < found[-1] == 100_000


def test_it_is_what_resizing_loses():
    """Against the mean square error by hand: small enough at the answer, too large at half of that."""
    picture = waves(30).convert("L")
    needed = pixels_needed(picture.convert("RGB"), 500, SIZE[0] * SIZE[1])

    def lost(pixels):
        scale = (pixels / (SIZE[0] * SIZE[1])) ** 0.5
        small = picture.resize([int(side * scale) for side in SIZE], PIL.Image.Resampling.LANCZOS)
        again = small.resize(SIZE, PIL.Image.Resampling.BICUBIC)
        return float(np.square(np.asarray(again, float) - np.asarray(picture, float)).mean() ** 0.5)

    assert 500 < needed < SIZE[0] * SIZE[1]
    assert lost(needed) <= 6 < lost(needed / 2)


def test_a_picture_is_never_enlarged():
    assert shrunk_to_detail(waves(2.1), 10**6, 10**7).size == SIZE


def test_tokens_follow_detail_and_boxes_stay(processor_of):
    plain, fine = chat_about(PIL.Image.new("RGB", SIZE, "teal")), chat_about(waves(2.1))
    data = VLMDataModule(train=OfList([plain, fine]), processor=processor_of("qwen2_vl"), **BUDGET)
    renderer = data.renderer
    few, many = renderer.example(plain), renderer.example(fine)
    assert len(many.input_ids) > len(few.input_ids) + 50
    for conversation, example in ((plain, few), (fine, many)):
        assert Ruler(renderer).length(conversation).tokens == len(example.input_ids)
        text = renderer.tokenizer.decode(example.input_ids)
        assert "(100,250),(500,500)" in text  # thousandths of the picture as it came
        assert example.coordinates.targets.tolist() == [pytest.approx([0.1, 0.25, 0.5, 0.5])]


def test_it_is_refused_where_it_can_do_nothing(processor_of):
    with pytest.raises(UserError, match=r"pixels_by_detail: it chooses between .*; set them"):
        VLMDataModule(pixels_by_detail=True, max_pixels=9)
    data = VLMDataModule(processor=processor_of("internvl"), **BUDGET)
    with pytest.raises(UserError, match="makes small pictures as large as others; leave it out"):
        assert data.renderer


def test_an_export_says_what_to_call():
    assert "shrunk_to_detail(picture, 784, 3136) first" in words_of_pictures(PixelBudget(784, 3136, True))
    assert PixelBudget.read(str(PixelBudget(784, 3136, True))) == PixelBudget(784, 3136, True)
