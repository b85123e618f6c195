"""What a video is once its frames are chosen: with their pixels, or only its measures."""

from dataclasses import dataclass

from torch import Tensor
from transformers.video_utils import VideoMetadata


@dataclass(frozen=True)
class Clip:
    """The chosen frames of a video.

    Args:
        frames: Tensor of shape [frames, 3, height, width], uint8: upright RGB.
        metadata: Of the whole video. `frames_indices` says which frames these are, and `frames_indices / fps`
            is the time of each in seconds.
    """

    frames: Tensor
    metadata: VideoMetadata


@dataclass(frozen=True)
class VideoShape:
    """What a `Clip` would be like.

    Args:
        frames: How many frames are chosen.
        height: Of each.
        width: Of each.
        metadata: As of `Clip`.
    """

    frames: int
    height: int
    width: int
    metadata: VideoMetadata
