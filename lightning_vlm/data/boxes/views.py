"""How the processor of each family shows a picture to its model.

Boxes count in the picture as it came wherever all of it is seen: squeezed into a square, resized to whole
patches, or cut into tiles beside a small copy, padded or not. Padding of tiles is taken away again by the
models (`unpad_image` of LLaVA-NeXT and LLaVA-OneVision), and DeepSeek-OCR's own code multiplies by the sides
of the picture as it came. Two kinds of processors show another frame, and boxes count in that:

- those that cut the edges off (`do_center_crop`: LLaVA 1.5, VipLLaVA, Video-LLaVA, FastVLM, Kosmos-2);
- those that show nothing but the picture in a square of padding (LLaVA 1.5 with `do_pad`, as it was trained
  (https://github.com/haotian-liu/LLaVA/issues/606), and DeepSeek-VL).
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from transformers import ProcessorMixin

from lightning_vlm.data.boxes.view import View

_Size = tuple[int, int]
_Crop = tuple[float, float, float, float]
_ALL: _Crop = (0.0, 0.0, 1.0, 1.0)
_ALONE_IN_PADDING = ("LlavaImageProcessor", "DeepseekVLImageProcessor", "DeepseekVLHybridImageProcessor")


def view_of(processor: ProcessorMixin, size: _Size) -> View:
    """How a model sees a picture.

    Args:
        processor: Of the model, with its settings as they are now.
        size: Width and height of the upright picture.

    Returns:
        `seen` is the size to which the picture is resized; where it is cut into tiles, that of the small copy
        of the whole picture.
    """
    images: Any = getattr(processor, "image_processor", None)
    if images is None or not getattr(images, "do_resize", True):
        return View(size, size)
    view = _within_longest_edge(processor, images, size)
    for rule in _RULES:
        view = view or rule(images, size)
    return view or View(size, size)


def _to_whole_patches(images: Any, size: _Size) -> View | None:
    """Qwen-VL and its kin: `smart_resize`, each family's own."""
    resize = _function(images, "smart_resize")
    edges = _edges(images, "size")
    if (
        resize is None
        or not hasattr(images, "merge_size")
        or edges.keys() != {"shortest_edge", "longest_edge"}
    ):
        return None
    frames = getattr(images, "temporal_patch_size", 1)
    options = {
        "num_frames": frames,
        "temporal_factor": frames,
        "height": size[1],
        "width": size[0],
        "factor": images.patch_size * images.merge_size,
        "min_pixels": edges["shortest_edge"],
        "max_pixels": edges["longest_edge"],
    }
    wanted = inspect.signature(resize).parameters
    return _resized(size, lambda: resize(**{name: options[name] for name in wanted if name in options}))


def _to_patch_budget(images: Any, size: _Size) -> View | None:
    """Gemma 4: as many patches as may be, in the shape of the picture."""
    resize = _function(images, "get_aspect_ratio_preserving_size")
    if resize is None:
        return None
    pool = images.pooling_kernel_size
    return _resized(
        size,
        lambda: resize(
            height=size[1],
            width=size[0],
            patch_size=images.patch_size,
            max_patches=images.max_soft_tokens * pool**2,
            pooling_kernel_size=pool,
        ),
    )


def _within_longest_edge(processor: Any, images: Any, size: _Size) -> View | None:
    """Pixtral: no side beyond a limit, in whole patches, or in as many as are merged."""
    edges = _edges(images, "size")
    if edges.keys() != {"longest_edge"} or hasattr(images, "max_image_size"):
        return None
    patch = images.patch_size
    if hasattr(processor, "spatial_merge_size") and hasattr(processor, "patch_size"):
        patch = processor.patch_size * processor.spatial_merge_size
    patches = (patch, patch) if isinstance(patch, int) else (patch["width"], patch["height"])
    ratio = max(side / edges["longest_edge"] for side in size)
    sides = [int(side / ratio) if ratio > 1 else side for side in size]
    width, height = (((side - 1) // patch + 1) * patch for side, patch in zip(sides, patches, strict=True))
    return View(size, (width, height))


def _from_the_centre(images: Any, size: _Size) -> View | None:
    """CLIP: resized, then cut to its centre."""
    if not getattr(images, "do_center_crop", False) or hasattr(images, "image_grid_pinpoints"):
        return None
    edges, kept = _edges(images, "size"), _edges(images, "crop_size")
    if "shortest_edge" in edges:
        short = edges["shortest_edge"]
        resized = tuple(short if side == min(size) else int(short * side / min(size)) for side in size)
    elif edges.keys() >= {"height", "width"}:
        resized = edges["width"], edges["height"]
    else:
        return None
    window = kept["width"], kept["height"]
    starts = [_start(side, cut) for side, cut in zip(resized, window, strict=True)]
    x1, y1 = (start / side for start, side in zip(starts, resized, strict=True))
    x2, y2 = ((start + cut) / side for start, cut, side in zip(starts, window, resized, strict=True))
    return View(size, window, (x1, y1, x2, y2))


def _in_tiles(images: Any, size: _Size) -> View | None:
    """Tiles, and a small copy whose size the processor finds by a method of its own."""
    if hasattr(images, "find_best_resize"):  # MiniCPM-V
        slices = images.get_sliced_grid(size[::-1], images.max_slice_nums, images.scale_resolution)
        options = images.scale_resolution, images.patch_size, images.downsample_mode
        return _resized(
            size, lambda: images.find_best_resize(size[::-1], *options, allow_upscale=slices is None)
        )
    if hasattr(images, "encoder_patch_size") and hasattr(images, "smart_resize"):  # LFM2-VL
        names = ("downsample_factor", "min_image_tokens", "max_image_tokens", "encoder_patch_size")
        width, height = images.smart_resize(size[1], size[0], *(getattr(images, name) for name in names))
        return View(size, (width, height))
    if _function(images, "get_image_size_fit_to_canvas") and hasattr(images, "max_image_tiles"):  # Mllama
        side = images.size.height
        canvas: Any = _function(images, "get_optimal_tiled_canvas")
        fit: Any = _function(images, "get_image_size_fit_to_canvas")
        tiles = canvas(size[1], size[0], images.max_image_tiles, side)
        return _resized(size, lambda: fit(size[1], size[0], *tiles, side))
    if hasattr(images, "max_image_size") and getattr(images, "do_image_splitting", False):  # Idefics3
        side = dict(images.max_image_size)["longest_edge"]
        return View(size, (side, side))
    return None


def _between_edges(images: Any, size: _Size) -> View | None:
    """Idefics2: the longer side no longer than one limit, and the shorter one no shorter than another."""
    edges = _edges(images, "size")
    if edges.keys() != {"shortest_edge", "longest_edge"}:
        return None
    ratio = size[0] / size[1]
    most = edges["longest_edge"]
    width, height = size
    if width >= height and width > most:
        width, height = most, int(most / ratio)
    elif height > width and height > most:
        width, height = int(most * ratio), most
    least = edges["shortest_edge"]
    return View(size, (max(width, least), max(height, least)))


def _to_one_size(images: Any, size: _Size) -> View | None:
    """Every picture to the same size, or a small copy of every picture."""
    edges = _edges(images, "size")
    if edges.keys() >= {"height", "width"}:
        return View(size, (edges["width"], edges["height"]))
    if "shortest_edge" in edges:
        return View(size, (edges["shortest_edge"], edges["shortest_edge"]))
    return None


def _in_a_square(images: Any, size: _Size) -> View | None:
    """The picture in the middle of a square of padding."""
    names = [kind.__name__.removesuffix("Pil") for kind in type(images).__mro__]
    if not getattr(images, "do_pad", False) or not any(name in names for name in _ALONE_IN_PADDING):
        return None
    edges = _edges(images, "size")
    side = edges.get("height") or edges.get("shortest_edge")
    if side is None:
        return None
    if hasattr(images, "min_size"):  # resized first, then padded
        inner = [max(int(length / max(size) * side), images.min_size) for length in size]
        outer = side
    else:
        inner, outer = list(size), max(size)
    starts = [-((outer - length) // 2) / length for length in inner]
    stops = [start + outer / length for start, length in zip(starts, inner, strict=True)]
    return View(size, (side, side), (starts[0], starts[1], stops[0], stops[1]))


_RULES = (
    _to_whole_patches,
    _to_patch_budget,
    _in_a_square,
    _from_the_centre,
    _in_tiles,
    _between_edges,
    _to_one_size,
)


def _start(side: int, cut: int) -> float:
    """Where a window in the middle of a side begins: before it where the window is larger."""
    return (side - cut) // 2 if side >= cut else -((cut - side) // 2)


def _resized(size: _Size, resize: Callable[[], tuple[int, int]]) -> View:
    try:
        height, width = resize()
    except ValueError:  # the processor refuses the picture itself, with its reason
        return View(size, size)
    return View(size, (int(width), int(height)))


def _edges(images: Any, name: str) -> dict[str, int]:
    """What an image processor says of a size, without what it leaves open."""
    size = getattr(images, name, None) or {}
    edges: Mapping[str, int | None] = dict(size)
    return {edge: value for edge, value in edges.items() if value is not None}


def _function(images: Any, name: str) -> Callable[..., tuple[int, int]] | None:
    """A function of the module of an image processor's class, or of the nearest class above it with one."""
    for kind in type(images).__mro__:
        found = getattr(sys.modules.get(kind.__module__), name, None)
        if found is not None:
            return found
    return None
