"""Masks of outlines, and outlines of masks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from lightning_vlm.data.boxes.areas import filled, outline_of, rasterize
from lightning_vlm.data.boxes.codecs import codec_of
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Region

masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=300, deadline=None)
@given(masks)
def test_the_outline_of_a_mask_is_filled_with_it(mask):
    outline = outline_of(mask)
    if outline is None:
        assert not mask.any()
    else:
        assert len(outline) >= 8
        np.testing.assert_array_equal(filled(outline, mask.shape[::-1]), mask)


def test_as_pillow_fills_a_polygon():
    points = [(4, 4), (58, 12), (40, 60), (20, 30)]
    picture = Image.new("1", (64, 64))
    ImageDraw.Draw(picture).polygon(points, fill=1)
    numbers = [number / 64 for point in points for number in point]
    mask = rasterize(Region(tuple(numbers)), (64, 64))
    differs = mask != np.array(picture)  # Pillow takes pixels that an edge touches, too
    assert mask.sum() > 900
    assert differs.sum() < 100


def test_seg_writes_a_label_and_a_token():
    codec, views = codec_of("seg"), [View((8, 8), (8, 8))] * 2
    corner = (0, 0, 1, 0, 1, 1)
    items = [Box((0, 0, 1, 1), "cat", 0), Region(corner, "dog", 0), Region(corner, None, 1)]
    text = codec.write(items, views).text
    assert text == "Picture 1: cat<seg>, dog<seg>\nPicture 2: <seg>"
    assert codec.named(text, views) == [("cat", 0), ("dog", 0), (None, 1)]
    assert codec.read(text, views).items == ()
