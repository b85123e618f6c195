"""Which frames of a video are chosen."""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

from transformers.video_utils import VideoMetadata

from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError

ChooseFrames: TypeAlias = Callable[[VideoMetadata, VideoSampling], list[int]]
"""From what is known of a video, and the settings, to the numbers of its frames that are taken."""
_REFUSALS = (ValueError, ZeroDivisionError, RuntimeError, TypeError, AssertionError)
"""What the rules of processors raise for a video that is too short, or for a setting that isn't there."""
_SECONDS = 20
_RATE = 30
"""Of the video on which it is tried what the rule of a processor heeds."""


def evenly(video: VideoMetadata, sampling: VideoSampling) -> list[int]:
    """Evenly spaced frames, from the first on; every frame if nothing says how many.

    >>> evenly(VideoMetadata(total_num_frames=50, fps=25.0), VideoSampling(fps=2))
    [0, 12, 25, 37]
    """
    total = video.total_num_frames
    count = sampling.num_frames or total
    if sampling.fps is not None and video.fps is not None:
        count = int(total / video.fps * sampling.fps)
    return _spaced(_within(count, total, sampling), total)


class ProcessorChoice:
    """Chooses the frames that the video processor of a model chooses.

    Its own `sample_frames` is asked, with the settings of the user in place of its own. That rule may round a
    number of frames to what the model takes at once, but not more: where it knows nothing of a setting, or
    refuses, as many do for a video with fewer frames than they want, frames are evenly spaced.

    Args:
        processor: A video processor of transformers.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        names = getattr(getattr(processor, "valid_kwargs", None), "__annotations__", {})
        self._own = {name: getattr(processor, name, None) for name in names}

    def __call__(self, video: VideoMetadata, sampling: VideoSampling) -> list[int]:
        """The chosen frames.

        Raises:
            UserError: Neither the user nor the processor says how many frames there are to be.
        """
        self.check(sampling)
        total = video.total_num_frames
        if sampling.num_frames is not None:
            count = min(sampling.num_frames, total)
            chosen = self._ask(video, sampling) if count < total else []
            is_rounded = 0 < len(chosen) <= total and abs(len(chosen) - count) < 2
            return chosen if is_rounded else _spaced(count, total)
        chosen = [] if sampling.fps and not self._heeds_fps else self._ask(video, sampling)
        chosen = chosen or evenly(video, self._own_sampling(sampling))
        count = _within(len(chosen), total, sampling)
        if count == len(chosen):
            return chosen
        again = self._ask(video, VideoSampling(num_frames=count)) if count < total else []
        return again if len(again) == count else _spaced(count, total)

    def check(self, sampling: VideoSampling) -> None:
        """Raise if nothing says how many frames of a long video are taken.

        Raises:
            UserError: So it is.
        """
        asked = (sampling.fps, sampling.num_frames, sampling.max_frames)
        if any(number is not None for number in asked) or self._says_how_many:
            return
        name = type(self._processor).__name__
        raise UserError(
            f"data.video: {name} doesn't say how many frames it takes of a video; set fps, such as 2, "
            "or num_frames"
        )

    @cached_property
    def _says_how_many(self) -> bool:
        """Whether the rule neither refuses nor takes all frames of a video, when it is left alone."""
        return 0 < self._tried(VideoSampling()) < _SECONDS * _RATE

    @cached_property
    def _heeds_fps(self) -> bool:
        """Whether the rule takes more frames where more frames a second are wanted."""
        return self._tried(VideoSampling(fps=1)) < self._tried(VideoSampling(fps=2))

    def _tried(self, sampling: VideoSampling) -> int:
        """How many frames the rule takes of an ordinary video."""
        total = _SECONDS * _RATE
        video = VideoMetadata(total_num_frames=total, fps=_RATE, width=640, height=480, duration=_SECONDS)
        return len(self._ask(video, sampling))

    def _ask(self, video: VideoMetadata, sampling: VideoSampling) -> list[int]:
        """What the rule of the processor says; nothing where it refuses."""
        last = video.total_num_frames - 1
        for keeps in (False, True):
            rule, settings = self._settings(sampling, keeps)
            try:
                indices = rule.sample_frames(copy.copy(video), **settings)
            except _REFUSALS:
                continue
            return [min(max(int(index), 0), last) for index in indices]
        return []

    def _settings(self, sampling: VideoSampling, keeps: bool) -> tuple[Any, dict[str, Any]]:
        """A processor with the settings of the user, and the same as arguments. Some rules read only these.

        Args:
            sampling: Those of the user.
            keeps: Whether the processor's own number of frames stays beside the user's `fps`, and the other
                way round: some rules need both.
        """
        rule = copy.copy(self._processor)
        settings = dict(self._own)
        for name in ("fps", "num_frames", "min_frames", "max_frames"):
            value = getattr(sampling, name)
            if value is not None:
                settings[name] = value
                if hasattr(rule, name):
                    setattr(rule, name, value)
        for asked, other in (("fps", "num_frames"), ("num_frames", "fps")):
            if getattr(sampling, asked) is None:
                continue
            settings[other] = None
            if hasattr(rule, other) and not keeps:
                setattr(rule, other, None)
        return rule, settings

    def _own_sampling(self, sampling: VideoSampling) -> VideoSampling:
        """How many frames there are to be where the rule refuses: as the user says, or else the processor."""
        if sampling.fps is not None:
            return sampling
        most = sampling.max_frames or getattr(self._processor, "max_frames", None)
        number = getattr(self._processor, "num_frames", None)
        if number is None:
            return VideoSampling(fps=getattr(self._processor, "fps", None), max_frames=most)
        return VideoSampling(num_frames=min(number, most or number))


def _within(count: int, total: int, sampling: VideoSampling) -> int:
    """A number of frames, within what was set and what there are."""
    count = max(count, sampling.min_frames or 1)
    count = min(count, sampling.max_frames or count)
    return min(count, total)


def _spaced(count: int, total: int) -> list[int]:
    return [number * total // count for number in range(count)]
