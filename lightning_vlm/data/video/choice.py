"""Which frames of a video are chosen."""

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

from transformers.video_utils import VideoMetadata

from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError

ChooseFrames: TypeAlias = Callable[[VideoMetadata, VideoSampling], list[int]]
"""From what is known of a video, and the settings, to the numbers of its frames that are taken."""
_COUNTS = ("fps", "num_frames", "max_num_frames", "max_fps")
"""Names under which processors say how many frames they take."""
_REFUSALS = (ValueError, ZeroDivisionError, RuntimeError, TypeError, AssertionError)
"""What the rules of processors raise for a video that is too short, or for a setting that isn't there."""


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

    Its own `sample_frames` is asked, with the settings of the user in place of its own. Where that rule
    refuses, as many do for a video with fewer frames than they want, frames are evenly spaced and at most all
    of them. And `min_frames` and `max_frames` hold even if the rule knows nothing of them.

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
        chosen = self._ask(video, sampling)
        count = _within(len(chosen), total, sampling)
        if count != len(chosen):
            chosen = self._ask(video, VideoSampling(num_frames=count))
        if len(chosen) > count:
            chosen = [chosen[place] for place in _spaced(count, len(chosen))]
        return chosen

    def check(self, sampling: VideoSampling) -> None:
        """Raise if nothing says how many frames of a video are taken.

        Raises:
            UserError: So it is.
        """
        if sampling.fps is not None or sampling.num_frames is not None or self._knows:
            return
        name = type(self._processor).__name__
        raise UserError(
            f"data.video: {name} doesn't say how many frames it takes of a video; set fps, such as 2, "
            "or num_frames"
        )

    @property
    def _knows(self) -> bool:
        """Whether the processor says how many frames it takes."""
        return any(getattr(self._processor, name, None) is not None for name in _COUNTS)

    def _ask(self, video: VideoMetadata, sampling: VideoSampling) -> list[int]:
        """What the rule of the processor says, or evenly spaced frames where it refuses."""
        total = video.total_num_frames
        if sampling.num_frames is not None and sampling.num_frames >= total:
            return list(range(total))
        for keeps in (False, True):
            rule, settings = self._settings(sampling, keeps)
            try:
                indices = rule.sample_frames(copy.copy(video), **settings)
            except _REFUSALS:
                continue
            chosen = [min(max(int(index), 0), total - 1) for index in indices]
            if chosen:
                return chosen
        return evenly(video, sampling.over(self._as_settings()))

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

    def _as_settings(self) -> VideoSampling:
        """What the processor says, as a user would."""
        known = {name: getattr(self._processor, name, None) for name in ("min_frames", "max_frames")}
        for name in ("num_frames", "fps"):  # those that have both take as many as the first
            value = getattr(self._processor, name, None)
            if value is not None:
                known[name] = value
                break
        return VideoSampling(**known)


def _within(count: int, total: int, sampling: VideoSampling) -> int:
    """A number of frames, within what was set and what there are."""
    count = max(count, sampling.min_frames or 1)
    count = min(count, sampling.max_frames or count)
    return min(count, total)


def _spaced(count: int, total: int) -> list[int]:
    return [number * total // count for number in range(count)]
