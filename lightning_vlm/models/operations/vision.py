"""What a vision tower and its projector compute for a picture."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.data.batch.picture_sizes import VIDEO_FRAMES, PictureSizes, picture_sizes
from lightning_vlm.models.operations.language import has_quantised, try_out
from lightning_vlm.models.operations.part import (
    Cost,
    UncountableError,
    Window,
    check_trial,
    cost_of,
    find_attentions,
)
from lightning_vlm.models.parts import find_parts, vision_tower


class Tower(NamedTuple):
    """A tower and its projector, as they were seen with one picture.

    Args:
        cost: For a patch, or for a tile if all tiles have one size.
        patch: Width of a patch in pixels, where pictures of any size are cut into patches by the tower; 0
            where the batch says how many patches there are.
        tile: Tokens of a tile, 0 if there are no tiles.
        merge: Patches along the side of a group that windows don't part.
    """

    cost: Cost
    patch: int = 0
    tile: int = 0
    merge: int = 1

    def rows(self, sizes: PictureSizes) -> int:
        """Patches or tiles of a batch."""
        if self.tile:
            return sizes.tiles
        return sum(frames * high * wide for frames, high, wide in self.grids(sizes))

    def grids(self, sizes: PictureSizes) -> Sequence[Sequence[int]]:
        """Frames, rows and columns of patches of each picture and video."""
        if not self.patch:
            return [*sizes.grids, *sizes.video_grids]
        return [(1, height // self.patch, width // self.patch) for height, width in sizes.pixels]

    def pairs(self, sizes: PictureSizes) -> dict[Window, float]:
        """How many pairs of patches each kind of layer compares: within a picture or a window of it."""
        found = {}
        for window in self.cost.per_pair:
            if self.tile:
                found[window] = float(sizes.tiles * self.tile**2)
            else:
                found[window] = sum(_pairs(grid, window, self.merge) for grid in self.grids(sizes))
        return found


def trace_vision(model: PreTrainedModel, inputs: Mapping[str, Tensor], sizes: PictureSizes) -> Tower:
    """See what the tower and the projector compute in a trial with the first picture of a batch.

    Args:
        model: The model.
        inputs: What its forward takes, with pictures.
        sizes: Of its pictures.

    Raises:
        UncountableError: They have something whose operations aren't known.
    """
    base: Any = model.base_model
    if vision_tower(model) is None or not hasattr(base, "get_image_features"):
        raise UncountableError("the model has no vision tower that can be called alone")
    tower: Any = vision_tower(model)
    patch = tower.config.patch_size if "image_sizes" in inspect.signature(tower.forward).parameters else 0
    picture, tried = _first_picture(base, inputs, sizes, patch)
    seen = try_out(model, lambda: _first_tensor(base.get_image_features(**picture)), "vision tower")
    paths = find_parts(model)["vision.layers"]
    if len(paths) != 1:
        raise UncountableError("the vision tower has no list of blocks")
    layers: Any = model.get_submodule(paths[0])
    attentions = find_attentions(seen.calls, layers, _windows(tower, len(layers)), "vision tower")
    is_tiled = not patch and not sizes.grids and not sizes.video_grids
    found = Tower(
        cost_of(seen, 1, attentions, _unused(model, layers)),
        patch=patch,
        tile=attentions[0].last.rows // tried.tiles if is_tiled else 0,
        merge=getattr(tower.config, "spatial_merge_size", 1),
    )
    if not has_quantised(tower):
        check_trial(seen, attentions, found.pairs(tried), "vision tower")
    cost = found.cost._replace(per_row=found.cost.per_row / found.rows(tried))
    return found._replace(cost=cost)


def _first_tensor(features: Any) -> Tensor:
    """The features of a picture, whatever they come in."""
    while not isinstance(features, Tensor):
        features = features.pooler_output if hasattr(features, "pooler_output") else features[0]
    return features


def _first_picture(
    base: Any, inputs: Mapping[str, Tensor], sizes: PictureSizes, patch: int
) -> tuple[dict[str, Tensor], PictureSizes]:
    """What `get_image_features` takes of a batch, cut to one picture or row of tiles, and its sizes."""
    if sizes.video_grids and not sizes.grids:
        # The first frames of a video go the same way as a picture with as many patches.
        _, high, wide = sizes.video_grids[0]
        grid = torch.tensor([[1, high, wide]])
        frames = {"pixel_values": inputs[VIDEO_FRAMES][: high * wide].cpu(), "image_grid_thw": grid}
        return frames, picture_sizes(frames)
    takes = inspect.signature(base.get_image_features).parameters
    picture = {name: value for name, value in inputs.items() if name in takes}
    (name,) = [name for name in picture if name in ("pixel_values", "pixel_values_images")]
    pixels = picture[name]
    if sizes.grids:
        patches = math.prod(sizes.grids[0])
        in_one_row = "target_sizes" in picture
        first = {name: pixels[..., : patches * pixels.shape[2]] if in_one_row else pixels[:patches]}
        for size in ("image_grid_thw", "image_merge_sizes", "target_sizes"):
            if size in picture:
                first[size] = picture[size][:1]
    elif patch:
        height, width = sizes.pixels[0]
        first = {name: pixels[:1, :, :height, :width], "image_sizes": picture["image_sizes"][:1]}
    else:
        # Rows of a batch without pictures are filled up with zeros.
        has_pixels = pixels[..., 0, 0].flatten(1).any(1)
        place = int(has_pixels.int().argmax())
        first = {name: value[place : place + 1] for name, value in picture.items()}
    on_host = {name: value.cpu() for name, value in first.items()}
    return first, picture_sizes(on_host)


def _windows(tower: nn.Module, layers: int) -> list[Window]:
    """The side of the windows of each block, in patches; None where all patches of a picture are seen."""
    config: Any = tower.config
    full = getattr(config, "fullatt_block_indexes", None)
    if full is None:
        return [None] * layers
    side = config.window_size // config.patch_size
    return [None if layer in full else side for layer in range(layers)]


def _pairs(grid: Sequence[int], window: Window, merge: int) -> float:
    """Pairs of patches that see one another: in a frame, or in a window of one.

    >>> _pairs((1, 4, 6), None, 2), _pairs((1, 4, 6), 4, 2)
    (576, 320)
    """
    frames, high, wide = grid
    if window is None:
        return frames * (high * wide) ** 2
    side = window // merge * merge
    squares = [sum(length**2 for length in _cut(edge, side)) for edge in (high, wide)]
    return frames * squares[0] * squares[1]


def _cut(edge: int, side: int) -> list[int]:
    """An edge in pieces of a length; the last may be shorter."""
    return [min(side, edge - start) for start in range(0, edge, side)]


def _unused(model: PreTrainedModel, layers: nn.Module) -> set[nn.Module]:
    """What comes after the block whose output is read, in families that read an earlier one (LLaVA)."""
    places = getattr(model.config, "vision_feature_layer", None)
    places = [places] if isinstance(places, int) else places  # a list where several are read (ViP-LLaVA)
    if not places:
        return set()
    blocks = list(layers.children())
    last_read = max(place % (len(blocks) + 1) for place in places)  # 0 is what enters the first block
    unused = blocks[last_read:]
    return {module for block in unused for module in block.modules()}
