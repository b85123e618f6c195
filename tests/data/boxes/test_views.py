"""A dot of a drawn picture is where `view_of` says, in what the processor of each family makes of it."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from transformers import LlavaImageProcessor
from transformers.models.mllama.image_processing_mllama import (
    get_all_supported_aspect_ratios,
    get_image_size_fit_to_canvas,
)

from lightning_vlm.data.boxes.views import view_of
from tests.support import tiny

DOTS = ((0.3, 0.35), (0.55, 0.7), (0.62, 0.4))
SIZES = ((120, 90), (75, 140))
PADDED_COPY = ("deepseek_ocr2",)
"""The small copy is padded to a square; boxes count in the picture, as in the published code."""
IN_ROWS = ("PaddleOCRVLImageProcessor", "HunYuanVLImageProcessor", "VideoLlama3ImageProcessor")
"""Patches are in rows of the whole picture; other families keep those together that they merge."""


def dotted(size, dot):
    """A black picture with a white dot, at so much of its width and height."""
    image = PIL.Image.new("RGB", size)
    x, y = (side * place for side, place in zip(size, dot, strict=True))
    radius = min(size) / 12
    PIL.ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill="white")
    return image


def frames(images, picture):
    """Each picture that the model gets of one: arrays of shape [height, width]."""
    made = images(picture, return_tensors="pt")
    pixels = made["pixel_values_images" if "pixel_values_images" in made else "pixel_values"]
    pixels = pixels[0] if isinstance(pixels, list) else pixels
    grid = next((made[name] for name in ("image_grid_thw", "image_grid_hws") if name in made), None)
    if grid is not None:
        return [unfolded(pixels, images, *grid[0].tolist()[-2:])]
    if "image_position_ids" in made:
        return [by_position(pixels[0], made["image_position_ids"][0], images.patch_size)]
    if "spatial_shapes" in made:
        return [
            by_rows(one, images, *shape.tolist())
            for one, shape in zip(pixels, made["spatial_shapes"], strict=False)
        ]
    if "aspect_ratio_ids" in made:
        return [canvas(pixels[0, 0], images, int(made["aspect_ratio_ids"][0, 0]), picture.size)]
    if "target_sizes" in made:
        return minicpm(pixels, images.patch_size, made["target_sizes"])
    if pixels.ndim <= 3:
        return molmo(pixels.reshape(-1, *pixels.shape[-2:]), images)
    return [one.float().mean(0).numpy() for one in pixels.reshape(-1, *pixels.shape[-3:])]


def unfolded(patches, images, rows, columns):
    """Patches of the Qwen families, of a merged group after the other."""
    merge = images.merge_size
    side = images.patch_size
    values = patches.reshape(rows * columns, -1, side, side).float().mean(1)
    if type(images).__name__ not in IN_ROWS:
        values = values.reshape(rows // merge, columns // merge, merge, merge, side, side)
        values = values.permute(0, 2, 4, 1, 3, 5)
    else:
        values = values.reshape(rows, columns, side, side).permute(0, 2, 1, 3)
    return values.reshape(rows * side, columns * side).numpy()


def by_position(patches, positions, side):
    columns, rows = (positions.max(0).values + 1).tolist()
    image = np.zeros((rows * side, columns * side))
    for patch, (x, y) in zip(patches, positions.tolist(), strict=True):
        if x >= 0:
            image[y * side : (y + 1) * side, x * side : (x + 1) * side] = patch.reshape(side, side, 3).mean(
                -1
            )
    return image


def by_rows(patches, images, rows, columns):
    side = images.encoder_patch_size
    values = patches[: rows * columns].reshape(rows, columns, side, side, 3).mean(-1)
    return values.permute(0, 2, 1, 3).reshape(rows * side, columns * side).numpy()


def canvas(tiles, images, ratio, size):
    """Mllama: the picture stands in the upper left of a canvas of tiles."""
    rows, columns = get_all_supported_aspect_ratios(images.max_image_tiles)[ratio - 1]
    side = images.size.height
    whole = tiles[: rows * columns].float().mean(1).reshape(rows, columns, side, side)
    whole = whole.permute(0, 2, 1, 3).reshape(rows * side, columns * side)
    height, width = get_image_size_fit_to_canvas(size[1], size[0], rows * side, columns * side, side)
    return whole[:height, :width].numpy()


def minicpm(pixels, side, sizes):
    pixels = pixels.reshape(3, side, -1).mean(0)
    found = []
    for rows, columns in sizes.reshape(-1, 2).tolist():
        part, pixels = pixels[:, : rows * columns * side], pixels[:, rows * columns * side :]
        values = part.reshape(side, rows, columns, side).permute(1, 0, 2, 3)
        found.append(values.reshape(rows * side, columns * side).numpy())
    return found


def molmo(crops, images):
    side = images.patch_size
    count = int(crops.shape[1] ** 0.5)
    values = crops.reshape(-1, count, count, side, side, 3).mean(-1).permute(0, 1, 3, 2, 4)
    return list(values.reshape(-1, count * side, count * side).numpy())


def centre(frame, black):
    """Where the dot of a frame is, in fractions of it; None without one."""
    light = np.clip(frame - black, 0, None)
    light[light < light.max() / 2] = 0
    if light.max() < 0.3 or not light.sum():
        return None
    height, width = frame.shape
    x = (light.sum(0) * (np.arange(width) + 0.5)).sum() / light.sum() / width
    y = (light.sum(1) * (np.arange(height) + 0.5)).sum() / light.sum() / height
    return x, y


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_dot_is_where_it_is_said_to_be(processor_of, family):
    processor = processor_of(family)
    images = processor.image_processor
    for size in SIZES:
        view = view_of(processor, size)
        best = None
        for dot in DOTS:
            made = frames(images, dotted(size, dot))
            blank = frames(images, PIL.Image.new("RGB", size))
            expected = view.to_seen(dot)
            if family in PADDED_COPY:
                expected = [
                    0.5 + (at - 0.5) * side / max(size) for at, side in zip(expected, size, strict=True)
                ]
            off = []
            for frame, black in zip(made, blank, strict=True):
                found = centre(frame, black)
                off.append(1.0 if found is None else float(np.abs(np.subtract(found, expected)).max()))
            best = np.array(off) if best is None else np.maximum(best, off)
        assert best.min() < 0.04, (size, view, best)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_seen_is_the_size_that_the_processor_makes(processor_of, family):
    processor = processor_of(family)
    images = processor.image_processor
    for size in (*SIZES, (31, 47), (300, 41), (28, 28)):
        made = images(PIL.Image.new("RGB", size), return_tensors="pt")
        seen = view_of(processor, size).seen
        if "image_grid_thw" in made:
            grid = made["image_grid_thw"][0].tolist()
            assert [seen[1], seen[0]] == [side * images.patch_size for side in grid[1:]]
        else:
            found = {(frame.shape[1], frame.shape[0]) for frame in frames(images, dotted(size, (0.5, 0.5)))}
            assert seen in found, (size, seen, found)


@pytest.mark.parametrize("size", SIZES)
def test_llava_as_it_was_trained_pads_to_a_square(size):
    images = LlavaImageProcessor(
        do_pad=True, size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    )
    view = view_of(SimpleNamespace(image_processor=images), size)
    assert min(view.crop) < 0
    for dot in DOTS:
        (frame,), (black,) = frames(images, dotted(size, dot)), frames(images, PIL.Image.new("RGB", size))
        np.testing.assert_allclose(centre(frame, black), view.to_seen(dot), atol=0.02)


def test_patches_that_a_processor_merges_count_together(processor_of):
    processor = processor_of("mistral3")
    processor.image_processor.patch_size = processor.patch_size = 7
    processor.spatial_merge_size = 4
    made = processor(images=[PIL.Image.new("RGB", (45, 30))], text=["[IMG]"], return_tensors="pt")
    width, height = view_of(processor, (45, 30)).seen
    assert (width, height) == (56, 56)
    assert made["pixel_values"].shape[-2:] == (height, width)
