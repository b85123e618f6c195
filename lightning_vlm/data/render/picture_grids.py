"""The tokens of pictures as grids: which token sees which place."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.counted import counted
from lightning_vlm.data.batch.masks import PictureGrid
from lightning_vlm.data.boxes.of_model import model_type_of
from lightning_vlm.errors import UserError

GRIDS = "image_grid_thw"
_SQUARE = ("LlavaProcessor", "PaliGemmaProcessor", "Gemma3Processor")
"""Processors whose pictures have a token for each cell of a square, row by row, and no others."""
_NOT_KNOWN = ("fast_vlm", "hunyuan_vl")
"""FastVLM's tower is made of convolutions, that see far; HunYuan-VL marks the rows of its pictures."""


def refuse_without_grid(processor: ProcessorMixin) -> None:
    """Refuse a model the tokens of whose pictures aren't known to be a grid.

    Raises:
        UserError: Pictures are cut into tiles, or summed up in learned queries, or their tokens aren't known.
    """
    name = type(processor).__name__
    images: Any = getattr(processor, "image_processor", None)
    in_tiles = getattr(images, "do_pan_and_scan", False)
    has_grid = name in _SQUARE or (hasattr(images, "merge_size") and GRIDS in processor.model_input_names)
    if in_tiles or not has_grid or model_type_of(processor) in _NOT_KNOWN:
        why = "cuts pictures into tiles" if in_tiles else "isn't known to make one grid of a picture's tokens"
        raise UserError(
            f"model.mask_head: {name} {why}; expected a family such as LLaVA 1.5, PaliGemma, Gemma 3 or "
            "Qwen-VL, or polygons as text (data.boxes)"
        )


def picture_grids(
    processor: ProcessorMixin, input_ids: Tensor, inputs: Mapping[str, Tensor], pictures: int
) -> tuple[PictureGrid, ...]:
    """The tokens of each picture of a sample.

    Args:
        processor: As of `refuse_without_grid`.
        input_ids: Tensor of shape [length], int64.
        inputs: What else the processor gives for the sample.
        pictures: How many there are.

    Raises:
        UserError: There are more or fewer tokens than the grids have cells.
    """
    (places,) = (input_ids == _token_id(processor)).nonzero(as_tuple=True)
    shapes = _shapes(processor, inputs, len(places), pictures)
    if sum(rows * columns for rows, columns in shapes) != len(places):
        grids = ", ".join(f"{rows}x{columns}" for rows, columns in shapes)
        raise UserError(
            f"model.mask_head: found {counted(len(places), 'token')} of {counted(pictures, 'picture')}; "
            f"expected a grid of them for each, as {grids}"
        )
    pieces = places.split([rows * columns for rows, columns in shapes])
    return tuple(PictureGrid(piece, *shape) for piece, shape in zip(pieces, shapes, strict=True))


def _token_id(processor: Any) -> int:
    """The token that stands for a cell. Gemma 3's processor calls the one that begins a picture so."""
    owner = processor.tokenizer if type(processor).__name__ == "Gemma3Processor" else processor
    return int(owner.image_token_id)


def _shapes(
    processor: Any, inputs: Mapping[str, Tensor], tokens: int, pictures: int
) -> list[tuple[int, int]]:
    if GRIDS in inputs:
        merge = processor.image_processor.merge_size
        return [(rows // merge, columns // merge) for _, rows, columns in inputs[GRIDS].tolist()]
    side = int((tokens / max(pictures, 1)) ** 0.5 + 0.5)
    return [(side, side)] * pictures
