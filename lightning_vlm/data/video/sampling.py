"""Which frames of a video are taken, and how large they may be: the settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import refuse_unknown_keys


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """How many frames of a video are taken, and how large they may be. None is what the processor says.

    Frames are chosen once, before anything else sees the video, and always the same ones: in training and in
    prediction, on every rank and in every epoch. They are the frames that the processor itself would choose
    with the same settings; see `choice.ProcessorChoice`.

    Args:
        fps: Frames taken from a second.
        num_frames: Frames taken from a video, evenly spaced; all of them if it has no more. Not with `fps`.
        min_frames: The fewest frames, as far as the video has them.
        max_frames: The most frames. What `fps` finds beyond it is thinned out evenly.
        min_pixels_per_frame: Smaller frames are enlarged to this width times height.
        max_pixels_per_frame: Larger frames are reduced to this width times height as soon as they are
            decoded.
        max_pixels: The most pixels of all frames together; frames are reduced, none is left out.

    Raises:
        UserError: A number out of range, or two that contradict one another.

    >>> VideoSampling(fps=1, max_frames=8).max_frames
    8
    >>> VideoSampling(fps=1, num_frames=8)
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: data.video: found both fps and num_frames; expected one of them
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels_per_frame: int | None = None
    max_pixels_per_frame: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check_number(setting.name, getattr(self, setting.name))
        if self.fps is not None and self.num_frames is not None:
            raise UserError("data.video: found both fps and num_frames; expected one of them")
        _check_order("min_frames", self.min_frames, "max_frames", self.max_frames)
        _check_order("num_frames", self.num_frames, "max_frames", self.max_frames)
        _check_order("min_frames", self.min_frames, "num_frames", self.num_frames)
        largest = "max_pixels_per_frame"
        _check_order("min_pixels_per_frame", self.min_pixels_per_frame, largest, self.max_pixels_per_frame)

    @classmethod
    def read(cls, given: "VideoSampling | Mapping[str, Any] | None") -> "VideoSampling":
        """From what a config or Python has: an object, its keys, or None.

        Raises:
            UserError: A key that there isn't, or a wrong value.

        >>> VideoSampling.read({"fps": 2}).fps
        2
        >>> VideoSampling.read({"max_frame": 2})
        Traceback (most recent call last):
        lightning_vlm.errors.UserError: data.video: there is no key max_frame; did you mean max_frames?
        """
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            return given
        refuse_unknown_keys(given, cls.__dataclass_fields__, "data.video")
        return cls(**given)

    def over(self, other: "VideoSampling") -> "VideoSampling":
        """These settings, and those of another where these say nothing.

        `fps` and `num_frames` are two answers to one question, so that either takes the place of both.

        Raises:
            UserError: The two together contradict themselves.

        >>> VideoSampling(num_frames=4).over(VideoSampling(fps=2, max_frames=8))
        VideoSampling(num_frames=4, max_frames=8)
        """
        own = {name: value for name in _NAMES if (value := getattr(self, name)) is not None}
        if self.fps is not None or self.num_frames is not None:
            other = replace(other, fps=None, num_frames=None)
        return replace(other, **own)

    def __repr__(self) -> str:
        own = [f"{name}={value}" for name in _NAMES if (value := getattr(self, name)) is not None]
        return f"VideoSampling({', '.join(own)})"


_NAMES = tuple(setting.name for setting in fields(VideoSampling))


def _check_number(name: str, value: Any) -> None:
    if value is None:
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if name == "fps":
        if not ((is_whole or isinstance(value, float)) and 0 < value < math.inf):
            raise UserError(f"data.video.fps: found {value!r}; expected frames a second, a number above 0")
    elif not is_whole or value < 1:
        raise UserError(f"data.video.{name}: found {value!r}; expected a whole number of 1 or more")


def _check_order(small_name: str, small: int | None, large_name: str, large: int | None) -> None:
    if small is not None and large is not None and small > large:
        raise UserError(
            f"data.video.{small_name}: found {small}, more than {large_name} ({large}); raise the latter"
        )
