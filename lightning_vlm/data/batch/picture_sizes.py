"""How many pictures a batch has and how large they are: numbers that loaders find and the host keeps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class PictureSizes(NamedTuple):
    """The pictures of a batch, without padding.

    Args:
        tiles: Pictures, or the tiles that they were cut into, where the model takes these in one size.
        grids: Frames, rows and columns of patches of each picture, where the model takes patches
            (`image_grid_thw`).
        pixels: Height and width of each picture, where the processor states them (`image_sizes`).
    """

    tiles: int = 0
    grids: Sequence[Sequence[int]] = ()
    pixels: Sequence[Sequence[int]] = ()


def picture_sizes(inputs: Mapping[str, Tensor]) -> PictureSizes:
    """The sizes of the pictures in a batch on the CPU.

    Args:
        inputs: What the model's forward takes.
    """
    values = inputs.get("pixel_values")
    return PictureSizes(
        tiles=0 if values is None else _tiles(values),
        grids=_rows(inputs.get("image_grid_thw")),
        pixels=_rows(inputs.get("image_sizes")),
    )


def _tiles(values: Tensor) -> int:
    """Those that have pixels: the tiles of a picture with fewer of them are filled up with zeros."""
    if values.ndim < 4:  # [patches, values]
        return 0
    # One pixel tells: no image processor makes zeros of a pixel, as means of channels lie between values.
    return int(values[..., 0, 0].any(-1).sum())


def _rows(values: Tensor | None) -> tuple[tuple[int, ...], ...]:
    if values is None:
        return ()
    return tuple(tuple(int(value) for value in row) for row in values.tolist())
