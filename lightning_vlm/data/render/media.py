"""The pictures and videos of a conversation, opened, as processors take them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import PIL.Image

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Image, Video
from lightning_vlm.data.render.example import ClipSpan
from lightning_vlm.data.render.turns import Turn
from lightning_vlm.data.video.clip import Clip
from lightning_vlm.errors import DataError

OpenPicture: TypeAlias = Callable[[Image, str, str], PIL.Image.Image]
"""Opens a picture, given the source of its sample and its key there, for errors."""
OpenVideo: TypeAlias = Callable[[Video, str, str], Clip]
"""Opens a video likewise: the frames that are looked at, and when they are shown."""
Opened: TypeAlias = dict[tuple[int, int], PIL.Image.Image | Clip]
"""The pictures and videos opened so far, by message and part."""
MOST_PIXELS = 1_400_000_000
"""The most pixels of all pictures of a sample, which take 4 GiB of memory while it is rendered."""

FLAT = ("GotOcr2Processor",)
"""Processors to which a list in a list is the pages of one document, not the pictures of one sample."""


class Media(NamedTuple):
    """The pictures and the videos of some turns, each in reading order."""

    pictures: list[PIL.Image.Image]
    clips: list[Clip]

    @property
    def expected(self) -> str:
        """What to give to a processor that refuses a sample."""
        if len({len(clip.frames) for clip in self.clips}) > 1:
            return "videos of as many frames each in one sample (data.video.num_frames)"
        if self.clips:
            return "a video of a usual size and length (data.video)"
        return "pictures of a usual size and shape" if self.pictures else "a picture in it"


def open_media(
    turns: Sequence[Turn], source: str, opened: Opened, open_picture: OpenPicture, open_video: OpenVideo
) -> Media:
    """Open the pictures and videos of some turns. Those that are not in `opened` are put there."""
    media = Media([], [])
    for turn in turns:
        for index, message in enumerate(turn.messages, turn.first):
            for place, part in enumerate(message.parts):
                key = f"messages[{index}].content[{place}]"
                if isinstance(part, Image | Video) and (index, place) not in opened:
                    if isinstance(part, Image):
                        opened[index, place] = open_picture(part, source, key)
                        _check_pixels(opened, source)
                    else:
                        opened[index, place] = open_video(part, source, key)
                found = opened.get((index, place))
                if isinstance(found, Clip):
                    media.clips.append(found)
                elif found is not None:
                    media.pictures.append(found)
    return media


def _check_pixels(opened: Opened, source: str) -> None:
    pictures = pictures_of(opened)
    pixels = sum(picture.width * picture.height for picture in pictures)
    if pixels > MOST_PIXELS:
        found = f"{len(pictures)} pictures of {pixels:,} pixels together in one sample"
        expected = f"at most {MOST_PIXELS:,}; data.max_pixels makes them smaller as they are opened"
        raise DataError(source, "messages", found, expected, "picture_too_large")


def pictures_of(opened: Opened) -> list[PIL.Image.Image]:
    """The pictures among what was opened, in reading order."""
    return [opened[place] for place in sorted(opened) if not isinstance(opened[place], Clip)]  # type: ignore[misc]


def check_places(places: Sequence[str], media: Media, video_token: str | None, source: str) -> None:
    """Raise unless a chat template has written as many places as there are pictures and videos.

    Args:
        places: The placeholders that the template wrote.
        media: What takes their places.
        video_token: The placeholder of a video.
        source: Of the sample.

    Raises:
        DataError: There are more or fewer.
    """
    for_videos = 0 if video_token is None else places.count(video_token)
    for_pictures = len(places) - for_videos
    for name, written, needed in (
        ("picture", for_pictures, len(media.pictures)),
        ("video", for_videos, len(media.clips)),
    ):
        if written != needed:
            found = (
                f"{counted(needed, name)} and {counted(written, 'place')} for them in the rendered template"
            )
            expected = f"as many places as {name}s; model.chat_template chooses another template"
            raise DataError(source, "messages", found, expected, "picture_count")


def clip_spans(
    clips: Sequence[Clip], spans: Sequence[tuple[int, int]], places: Sequence[str], video_token: str | None
) -> tuple[ClipSpan, ...]:
    """Where the tokens of each clip are.

    Args:
        clips: In reading order.
        spans: From which token on, and up to which, each picture or video goes.
        places: Their placeholders in the same order.
        video_token: That of a video.
    """
    of_videos = [span for span, place in zip(spans, places, strict=True) if place == video_token]
    return tuple(ClipSpan(*span, clip.metadata) for span, clip in zip(of_videos, clips, strict=True))


def nested(processor: object, pictures: list[PIL.Image.Image]) -> list | None:
    """Pictures of one sample in the lists that a processor takes; None if there are none.

    Args:
        processor: A processor of transformers.
        pictures: In reading order.
    """
    if not pictures:
        return None
    # Every nesting other than [[picture, ...]] is refused by some family.
    return pictures if type(processor).__name__ in FLAT else [pictures]


def media_options(processor: object, media: Media, video_options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by which a processor gets pictures and videos.

    Args:
        processor: A processor of transformers.
        media: Of one sample.
        video_options: What the processor gets to know of its videos beside them.
    """
    options: dict[str, Any] = {"images": nested(processor, media.pictures)}
    if media.clips:
        options |= video_options
        options["videos"] = [clip.frames for clip in media.clips]
        # Some processors change what they get here.
        options["video_metadata"] = [copy.deepcopy(clip.metadata) for clip in media.clips]
        options["do_sample_frames"] = False
    return options
