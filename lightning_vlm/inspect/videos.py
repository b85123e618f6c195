"""The videos of a sample as a preview shows them: each frame with its time and what it costs in tokens."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import NamedTuple

import PIL.Image

from lightning_vlm.data.conversation import Video
from lightning_vlm.data.render.example import ClipSpan, Example
from lightning_vlm.data.render.renderer import Renderer

SHOWN = 24
"""Of a video with more frames so many are shown, evenly spaced."""


class Frame(NamedTuple):
    """A frame that the model sees.

    Args:
        image: Its picture.
        seconds: When it is shown.
        tokens: What it costs, with what the processor writes around it; a share where several frames cost
            tokens together.
    """

    image: PIL.Image.Image
    seconds: float
    tokens: float


class Strip(NamedTuple):
    """A video of a sample.

    Args:
        name: Its file or address.
        tokens: What it costs.
        seen: How many frames the model sees.
        fps: How many frames there are in a second of the video itself.
        first: When the first frame that the model sees is shown, in seconds.
        last: When the last one is.
        frames: Those that are shown.
    """

    name: str
    tokens: int
    seen: int
    fps: float
    first: float
    last: float
    frames: list[Frame]

    def describe(self) -> str:
        """The video in a line."""
        each = self.tokens / self.seen
        return (
            f"{self.name}: {self.seen:,} frames at {seconds(self.first)} to {seconds(self.last)}, of "
            f"{self.fps:g} a second; {self.tokens:,} tokens, {each:.4g} a frame"
        )


def seconds(time: float) -> str:
    """A time as it is shown.

    >>> seconds(2.25), seconds(75.0)
    ('2.25 s', '1:15.0 min')
    """
    if time < 60:
        return f"{round(time, 2):g} s"
    minutes, rest = divmod(time, 60)
    return f"{int(minutes)}:{rest:04.1f} min"


def strips(renderer: Renderer, example: Example) -> list[Strip]:
    """The videos of a sample, whose frames are decoded once more.

    Args:
        renderer: That rendered it.
        example: The sample.
    """
    source = example.conversation.source
    ids = example.input_ids.tolist()
    features = set(renderer.tokenizer.convert_tokens_to_ids(list(renderer.special.placeholders)))
    found = []
    for video, span in zip(example.conversation.videos, example.clips, strict=True):
        clip = renderer.open_video(video, source, "video")
        times = span.metadata.timestamps
        costs = frame_costs(ids[span.start : span.stop], len(clip.frames), features)
        frames = []
        for place in _evenly(len(clip.frames)):
            pixels = clip.frames[place].permute(1, 2, 0).contiguous().numpy()
            frames.append(Frame(PIL.Image.fromarray(pixels), times[place], costs[place]))
        found.append(_strip(video, span, times, frames))
    return found


def frame_costs(ids: Sequence[int], frames: int, features: Collection[int] = ()) -> list[float]:
    """What each frame of a video costs in tokens; the sum is the whole video.

    Most tokens of a video stand for features. Where a processor writes something between frames, such as
    their times, it belongs to the frame behind it. Where frames share features, each costs its share.

    Args:
        ids: The tokens of the video.
        frames: How many frames the model sees.
        features: Tokens that may stand for features; where none of them is there, the most frequent does.

    >>> frame_costs([7, 1, 1, 8, 9, 1, 1, 8], frames=4)
    [1.5, 1.5, 2.5, 2.5]
    >>> frame_costs([1, 1, 1, 1], frames=2)
    [2.0, 2.0]
    """
    counts = Counter(token for token in ids if token in features) or Counter(ids)
    feature, _ = counts.most_common(1)[0]
    ends = []
    place = 0
    for is_feature, run in groupby(ids, lambda token: token == feature):
        place += len(list(run))
        if is_feature:
            ends.append(place)
    at_once, rest = divmod(frames, len(ends))
    at_once += rest > 0
    if len(ends) == 1 or len(ends) != -(-frames // at_once):
        return [len(ids) / frames] * frames
    ends[-1] = len(ids)
    costs: list[float] = []
    start = 0
    for end in ends:
        sharing = min(at_once, frames - len(costs))
        costs += [(end - start) / sharing] * sharing
        start = end
    return costs


def _strip(video: Video, span: ClipSpan, times: Sequence[float], frames: list[Frame]) -> Strip:
    return Strip(
        name=_name(video),
        tokens=span.stop - span.start,
        seen=len(times),
        fps=span.metadata.fps or 0.0,
        first=times[0],
        last=times[-1],
        frames=frames,
    )


def _name(video: Video) -> str:
    if video.path is not None:
        return os.path.normpath(video.path)
    if video.url is not None:
        return video.url
    return f"{len(video.frames)} pictures" if video.frames else "a video in the data"


def _evenly(count: int) -> list[int]:
    if count <= SHOWN:
        return list(range(count))
    return [round(place * (count - 1) / (SHOWN - 1)) for place in range(SHOWN)]
