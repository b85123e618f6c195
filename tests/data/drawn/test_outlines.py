"""Outlines of drawn things, against the pixels that were drawn."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from lightning_vlm.data.boxes.areas import rasterize
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.drawn.scenes import draw_thing, layout
from lightning_vlm.data.drawn.vocabulary import SHAPES
from lightning_vlm.data.parts import Region


@pytest.mark.parametrize("size", [64, 100])
def test_an_outline_is_where_the_ink_is(size):
    overlaps, seen = [], set()
    for seed in range(60):
        (thing, *_) = layout(Random(seed), "train", word_chance=0.0)
        picture = Image.new("RGB", (size, size), "white")
        drawn = draw_thing(picture, thing, (0, 0, 0))
        ink = np.array(picture.convert("L")) < 128
        mask = rasterize(Region(drawn.outline), (size, size))
        overlaps.append((ink & mask).sum() / (ink | mask).sum())
        assert overlaps[-1] > 0.8, thing
        seen.add(thing.shape)
    assert sum(overlaps) / len(overlaps) > 0.95
    assert seen == set(SHAPES)


def test_a_task_asks_for_outlines():
    data = Drawn("train", size=20, tasks=["segmentation"])
    for conversation in data:
        (region,) = conversation.messages[-1].parts
        assert isinstance(region, Region)
        assert len(region.outline) >= 6
        question = conversation.messages[-2].parts[-1].text
        assert region.label in question or region.label.split()[-1] in question
