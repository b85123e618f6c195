"""A video processor that is asked about each size of videos once, and whether it must see what is in them."""

from typing import Any

import torch
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from lightning_vlm.data.batch.blank_pictures import RememberingImageProcessor
from lightning_vlm.data.conversation import Conversation, Message, Text, Video
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.videos import black
from lightning_vlm.data.video.clip import Clip
from lightning_vlm.errors import DataError

_FRAMES_TO_TRY = (2, 5)
"""Of videos in which two ways of measuring are compared."""


class RememberingVideoProcessor(RememberingImageProcessor):
    """As `RememberingImageProcessor`, for videos: answers are kept by the shapes of their frames."""

    def __call__(self, images: Any, **options: Any) -> BatchFeature:
        # What is known of each video goes through a processor as it is, and sizes don't depend on it.
        metadata = options.pop("video_metadata", None)
        answer = super().__call__(images, **options)
        if "video_metadata" in answer:
            answer["video_metadata"] = metadata
        return answer

    def _key(self, videos: Any) -> Any:
        return tuple(tuple(video.shape) for video in videos)

    def _without_values(self, videos: Any) -> Any:
        return [torch.empty(video.shape, dtype=video.dtype, device="meta") for video in videos]


def length_needs_pixels(blind: Renderer, renderer: Renderer) -> bool:
    """Whether the number of a video's tokens depends on what is seen in it, as in VideoLLaMA 3.

    Args:
        blind: Measures with blank videos.
        renderer: As it trains.
    """
    return any(_ids(blind, frames, False) != _ids(renderer, frames, True) for frames in _FRAMES_TO_TRY)


def _ids(renderer: Renderer, frames: int, is_seen: bool) -> Any:
    """The tokens of a sample with a video of still frames and others, or what its rendering raises."""
    clip = black(frames, 112, 140)
    if is_seen:
        clip = clip.clone()
        clip[1:2, :, ::7] = 255
    metadata = VideoMetadata(
        frames, fps=2.0, width=140, height=112, duration=frames / 2, frames_indices=list(range(frames))
    )
    tried = renderer.opening(lambda video, source, key: Clip(clip, metadata))
    asked = Message("user", (Video(url="video"), Text("What is it?")))
    try:
        example = tried.example(Conversation((asked, Message("assistant", (Text("A cat."),)))))
    except DataError as error:
        return error.found
    return example.input_ids.tolist()
