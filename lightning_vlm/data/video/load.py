"""From a `Video` to the frames that are chosen of it, or to their number and size."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from transformers.video_utils import VideoMetadata

from lightning_vlm.data.conversation import Video
from lightning_vlm.data.video.choice import ChooseFrames, evenly
from lightning_vlm.data.video.clip import Clip, VideoShape
from lightning_vlm.data.video.files import FileFrames, find_video
from lightning_vlm.data.video.pictures import PictureFrames
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.data.video.sizes import MOST_PIXELS, MOST_SECONDS, frame_size
from lightning_vlm.errors import DataError, UserError

MOST_BYTES = 2 << 30
"""The most memory of the chosen frames of a video."""


def load_video(
    video: Video,
    source: str,
    key: str,
    sampling: VideoSampling | None = None,
    choose: ChooseFrames = evenly,
) -> Clip:
    """The chosen frames of a video, upright and in RGB. Only they are decoded, one after the other.

    A file is decoded by PyAV. Sound is ignored. The time of a frame is when it is shown, also
    where frames come unevenly; a folder or a list of frames has the time that `video.fps` says.

    Args:
        video: By path, bytes, URL or frames.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        sampling: The settings of the run; those of the video itself go before them.
        choose: Chooses frames by the settings, such as a `ProcessorChoice`.

    Raises:
        DataError: No such file, a path outside the root, not a video, a broken or truncated one, no frames, a
            list of frames of unknown time, more pixels than fit into memory, or more than a week.
        UserError: PyAV is not installed.

    >>> import io
    >>> from lightning_vlm.data.conversation import Image
    >>> def frame(grey):
    ...     file = io.BytesIO()
    ...     PIL.Image.new("L", (4, 2), grey).save(file, "PNG")
    ...     return Image(data=file.getvalue())
    >>> video = Video(frames=tuple(map(frame, range(8))), fps=4)
    >>> clip = load_video(video, "pets.jsonl:1", "video", VideoSampling(fps=2))
    >>> clip.frames.shape, clip.frames[:, 0, 0, 0], clip.metadata.timestamps
    (torch.Size([4, 3, 2, 4]), tensor([0, 2, 4, 6], dtype=torch.uint8), [0.0, 0.5, 1.0, 1.5])
    """
    opened = _opened(video, source, key)
    shape = _shape(opened, video, source, key, sampling, choose)
    frames = torch.empty(shape.frames, 3, shape.height, shape.width, dtype=torch.uint8)
    indices = shape.metadata.frames_indices or []
    wanted = sorted(set(indices))
    for place, pixels in zip(wanted, opened.decode(wanted), strict=True):
        tensor = torch.from_numpy(_resized(pixels, shape.height, shape.width)).permute(2, 0, 1)
        for number, index in enumerate(indices):
            if index == place:
                frames[number] = tensor
    return Clip(frames, shape.metadata)


def video_shape(
    video: Video,
    source: str,
    key: str,
    sampling: VideoSampling | None = None,
    choose: ChooseFrames = evenly,
) -> VideoShape:
    """How many frames `load_video` would give, and how large. No frame is decoded but the first of a file.

    Args:
        video: As of `load_video`.
        source: As of `load_video`.
        key: As of `load_video`.
        sampling: As of `load_video`.
        choose: As of `load_video`.

    Raises:
        DataError: As of `load_video`, but for what is wrong with the pixels themselves.
        UserError: As of `load_video`.
    """
    return _shape(_opened(video, source, key), video, source, key, sampling, choose)


def _opened(video: Video, source: str, key: str) -> FileFrames | PictureFrames:
    path = find_video(video, source, key)
    if video.frames or (path is not None and path.is_dir()):
        return PictureFrames(video, path, source, key)
    return FileFrames(video, path, source, key)


def _shape(
    opened: FileFrames | PictureFrames,
    video: Video,
    source: str,
    key: str,
    sampling: VideoSampling | None,
    choose: ChooseFrames,
) -> VideoShape:
    asked = _settings(video, sampling, source, key)
    height, width = opened.upright_size
    if height * width > MOST_PIXELS:
        found = f"frames of {width}×{height} pixels"
        raise DataError(source, key, found, f"at most {MOST_PIXELS:,} pixels; make them smaller")
    duration = opened.frames / opened.fps
    if duration > MOST_SECONDS:
        found = f"a video of {duration:,.0f} seconds"
        raise DataError(source, key, found, f"at most {MOST_SECONDS:,}, a week; make it faster or cut it")
    metadata = VideoMetadata(
        total_num_frames=opened.frames,
        fps=opened.fps,
        height=height,
        width=width,
        duration=duration,
        video_backend=opened.backend,
    )
    indices = choose(metadata, asked)
    metadata.frames_indices = indices
    height, width = frame_size(height, width, len(indices), asked)
    _check_memory(len(indices), height, width, source, key)
    return VideoShape(len(indices), height, width, metadata)


def _settings(video: Video, sampling: VideoSampling | None, source: str, key: str) -> VideoSampling:
    """Those of the run, and those of the row before them."""
    asked = sampling or VideoSampling()
    if video.sampling is None:
        return asked
    try:
        return video.sampling.over(asked)
    except UserError as error:
        found = f"settings that contradict one another ({error})"
        raise DataError(source, key, found, "settings that agree") from None


def _check_memory(frames: int, height: int, width: int, source: str, key: str) -> None:
    size = frames * height * width * 3
    if size <= MOST_BYTES:
        return
    found = f"{frames:,} frames of {width}×{height} pixels, {size / 2**30:.1f} GiB"
    expected = f"at most {MOST_BYTES >> 30} GiB; set data.video.max_frames, or max_pixels_per_frame beside it"
    raise DataError(source, key, found, expected)


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] != (height, width):
        picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(picture.resize((width, height), PIL.Image.Resampling.BICUBIC))
    return np.array(pixels)  # its own memory, in order


__all__: Sequence[str] = ("MOST_BYTES", "load_video", "video_shape")
