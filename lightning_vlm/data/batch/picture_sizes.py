"""How many pictures a batch has and how large they are: numbers that loaders find and the host keeps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

VIDEO_FRAMES = "pixel_values_videos"
"""The input that has the pixels of videos, where they are apart from those of pictures."""


class PictureSizes(NamedTuple):
    """The pictures and videos of a batch, without padding.

    Args:
        tiles: Pictures, or the tiles that they were cut into, where the model takes these in one size; frames
            of videos too, where the model takes them for pictures.
        grids: Frames, rows and columns of patches of each picture, where the model takes patches
            (`image_grid_thw`, or `target_sizes` of rows and columns alone).
        pixels: Height and width of each picture, where the processor states them (`image_sizes`).
        video_grids: As `grids`, of each video.
        video_frames: How many frames each video has, where the model takes them in one tensor and one size.
    """

    tiles: int = 0
    grids: Sequence[Sequence[int]] = ()
    pixels: Sequence[Sequence[int]] = ()
    video_grids: Sequence[Sequence[int]] = ()
    video_frames: Sequence[int] = ()


def picture_sizes(inputs: Mapping[str, Tensor]) -> PictureSizes:
    """The sizes of the pictures in a batch on the CPU.

    Args:
        inputs: What the model's forward takes.
    """
    values = inputs.get("pixel_values", inputs.get("pixel_values_images"))
    videos = inputs.get(VIDEO_FRAMES)
    in_one_row = _rows(inputs.get("target_sizes"))
    return PictureSizes(
        tiles=0 if values is None or in_one_row else _tiles(values),
        grids=_rows(inputs.get("image_grid_thw")) or tuple((1, *size) for size in in_one_row),
        pixels=_rows(inputs.get("image_sizes")),
        video_grids=_rows(inputs.get("video_grid_thw")),
        video_frames=frames_of_videos(videos) if videos is not None and videos.ndim == 5 else (),
    )


def frames_of_videos(values: Tensor) -> list[int]:
    """How many frames each video has: those that aren't zeros, as of `_tiles`.

    Args:
        values: Tensor of shape [videos, frames, 3, height, width].
    """
    return values[..., 0, 0].any(-1).sum(1).tolist()


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
