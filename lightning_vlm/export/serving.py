"""Lets the processor of an export choose and resize the frames of videos as training did."""

import copy
import re
from collections.abc import Mapping
from typing import Any

from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from lightning_vlm.data.render.videos import FrameSize
from lightning_vlm.data.video.choice import ProcessorChoice
from lightning_vlm.data.video.sampling import VideoSampling

_TRIALS = ((90, 30.0), (300, 30.0), (1000, 25.0))
"""Frames and frames a second of videos on which two ways of choosing are compared."""
_NOT_FOR_SAMPLING = ("input_data_format", "do_convert_rgb", "do_sample_frames", "device", "video_metadata")


def trained_sampling(run: Mapping[str, Any]) -> VideoSampling:
    """The settings `data.video` of a run.

    Args:
        run: What a checkpoint says of it.

    >>> trained_sampling({"data.video": "VideoSampling(fps=0.5, max_frames=8)"})
    VideoSampling(fps=0.5, max_frames=8)
    """
    settings: dict[str, Any] = {}
    for name, value in re.findall(r"\b(\w+)=([\d.]+)", str(run.get("data.video", ""))):
        settings[name] = float(value) if "." in value else int(value)
    return VideoSampling(**settings)


def serve_as_trained(processor: ProcessorMixin, sampling: VideoSampling) -> str | None:
    """Put the settings of a run into a processor, so that it does the same when it is served.

    Args:
        processor: Of the trained model; its video processor is changed.
        sampling: As trained.

    Returns:
        What it will do with videos, or what it doesn't take; None where nothing was set.
    """
    videos: Any = getattr(processor, "video_processor", None)
    if videos is None or sampling == VideoSampling():
        return None
    flaws = []
    trained = ProcessorChoice(copy.copy(videos))
    _set_frames(videos, sampling, trained)
    if not _chooses_alike(videos, sampling, trained):
        flaws.append("it chooses other frames")
    if sampling.max_pixels_per_frame or sampling.max_pixels:
        size = FrameSize(videos, sampling).fixed_option()
        if size is None:
            flaws.append("it makes frames of another size")
        else:
            videos.size = type(videos.size)(**size) if not isinstance(videos.size, dict) else size
    said = str(sampling).removeprefix("VideoSampling")
    if not flaws:
        return f"the processor chooses them as trained {said}"
    problem = " and ".join(flaws)
    return f"{problem} than in training when it is served: choose them as trained {said} and pass these"


def _set_frames(videos: Any, sampling: VideoSampling, trained: ProcessorChoice) -> None:
    """Some rules need both `fps` and `num_frames`, others only one: so that it chooses as trained."""
    videos.do_sample_frames = True
    for name in ("min_frames", "max_frames"):
        value = getattr(sampling, name)
        if value is not None:
            setattr(videos, name, value)
    for name, other in (("fps", "num_frames"), ("num_frames", "fps")):
        value = getattr(sampling, name)
        if value is None:
            continue
        setattr(videos, name, value)
        kept = getattr(videos, other, None)
        setattr(videos, other, None)
        if not _chooses_alike(videos, sampling, trained):
            setattr(videos, other, kept)
            if not _chooses_alike(videos, sampling, trained):
                setattr(videos, other, None)


def _chooses_alike(videos: Any, sampling: VideoSampling, trained: ProcessorChoice) -> bool:
    """Whether a video processor by itself chooses the frames that were trained on."""
    settings = {name: getattr(videos, name, None) for name in videos.valid_kwargs.__annotations__}
    for name in _NOT_FOR_SAMPLING:
        settings.pop(name, None)
    for frames, fps in _TRIALS:
        video = VideoMetadata(frames, fps=fps, width=64, height=64, duration=frames / fps)
        expected = trained(copy.copy(video), sampling)
        try:
            found = videos.sample_frames(metadata=copy.copy(video), **settings)
        except Exception:  # rules raise anything for settings that they don't take
            return False
        if [int(place) for place in found] != expected:
            return False
    return True
