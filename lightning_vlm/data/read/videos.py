"""Videos as people write them: paths, URLs, bytes, lists of frames, and settings beside them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_vlm.data.conversation import Video
from lightning_vlm.data.read.fields import check_spelling, number_of, text_of, without_nulls
from lightning_vlm.data.read.pictures import bytes_of_base64, check_url, path_of_file_url, picture_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError

_DATA_URL = re.compile(r"data:video/[\w.+-]+;base64,", re.IGNORECASE)
_PICTURE_FILE = re.compile(r".+\.(jpe?g|png|webp|bmp|gif|tiff?)", re.IGNORECASE)
_SETTINGS: Mapping[str, str] = {
    "fps": "fps",
    "nframes": "num_frames",
    "num_frames": "num_frames",
    "min_frames": "min_frames",
    "max_frames": "max_frames",
    "min_pixels": "min_pixels_per_frame",
    "max_pixels": "max_pixels_per_frame",
    "total_pixels": "max_pixels",
}
"""What Qwen-VL's data says of a video -> our setting."""
_CUTS = ("video_start", "video_end")
_CONTENTS = ("video", "frames", "path", "url", "video_url", "bytes", "base64", "data")
KEYS = (*_CONTENTS, "sample_fps", *_SETTINGS, *_CUTS, "type", "index")
"""Keys of a part that is a video."""


def video_of(value: Any, at: Location) -> Video:
    """One video, however it is written.

    Raises:
        DataError: The value isn't a video, no such file exists, frames have no time, or it is a URL and URLs
            aren't allowed.
    """
    if isinstance(value, dict):
        return video_part(value, at)
    return _checked(_contents(value, at), {}, at)


def own_video(part: dict[str, Any], at: Location) -> Video:
    """A video of our own format, whose keys are known."""
    (name,) = (name for name in ("path", "frames", "base64") if name in part)
    video = _contents(part[name], at / name, name)
    options: dict[str, Any] = {}
    if "fps" in part:
        options["fps"] = number_of(part["fps"], at / "fps")
    if "sampling" in part:
        options["sampling"] = _sampling(part["sampling"], at / "sampling")
    return _checked(video, options, at)


def video_part(part: dict[str, Any], at: Location) -> Video:
    """A video with settings beside it, as in a part of Qwen-VL's data.

    `fps` is how many frames come in a second where the video is a list or a folder of them, else how many are
    taken from a second. Keys without effect, such as `resized_height`, are noted.
    """
    part = without_nulls(part)
    for name in part:
        if name not in KEYS:
            check_spelling(name, KEYS, part, at)
            at.reading.notes.ignore(f"content[*].{name}")
    given = has_contents(part)
    if len(given) != 1 and given != ["path", "bytes"]:
        found = f"a video with {' and '.join(map(repr, given)) or 'no file'}"
        raise at.error(found, "one of the keys 'video', 'path', 'frames', 'url', 'bytes', 'base64'")
    for name in _CUTS:
        if name in part:
            expected = f"a file that is cut already: '{name}' can't be read yet"
            raise (at / name).wrong(part[name], expected)
    name = given[-1]
    video = _contents(part[name], at / name, name)
    settings = {key: part[key] for key in _SETTINGS if key in part}
    rate = None
    if "sample_fps" in part:
        rate = number_of(part["sample_fps"], at / "sample_fps")
    elif "fps" in settings and _is_pictures(video):
        rate = number_of(settings.pop("fps"), at / "fps")
    options: dict[str, Any] = {} if rate is None else {"fps": rate}
    if settings:
        ours = {_SETTINGS[key]: value for key, value in settings.items()}
        options["sampling"] = _sampling(ours, at)
    return _checked(video, options, at)


def has_contents(part: dict[str, Any]) -> list[str]:
    """The keys of a part that say which video it is."""
    return [name for name in _CONTENTS if part.get(name) not in (None, "", [])]


def is_one_video(value: list[Any], column: str) -> bool:
    """Whether a list is the frames of one video, and not several videos.

    >>> is_one_video(["a/1.jpg", "a/2.jpg"], "video"), is_one_video(["a.mp4", "b.mp4"], "video")
    (True, False)
    >>> is_one_video([["a/1.jpg", "a/2.jpg"]], "videos")
    False
    """
    return bool(value) and all(isinstance(item, str) and _PICTURE_FILE.fullmatch(item) for item in value)


def _contents(value: Any, at: Location, key: str = "") -> Video:
    """Where a video is, without its settings."""
    if isinstance(value, list):
        frames = tuple(picture_of(item, at / index) for index, item in enumerate(value))
        if not frames:
            raise at.error("an empty list", "at least one frame")
        return Video(frames=frames)
    if isinstance(value, dict) and isinstance(value.get("url"), str):
        value = value["url"]
        at = at / "url"
    elif isinstance(value, dict) and value.keys() <= {"bytes", "path"}:  # as `datasets.Video` stores it
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return Video(data=value)
    if not isinstance(value, str):
        raise at.wrong(value, "the path of a video, as a text, or a list of frames")
    text = text_of(value, at)
    header = _DATA_URL.match(text)
    if header or key in ("base64", "data", "bytes"):
        return Video(data=bytes_of_base64(text[header.end() :] if header else text, at, "video"))
    if text.lower().startswith("file:"):
        text = path_of_file_url(text, at)
    elif text.lower().startswith(("http://", "https://")):
        return Video(**check_url(text, at, "videos"))
    return Video(path=Path(text), root=at.reading.root)


def _is_pictures(video: Video) -> bool:
    """Whether a video is a list or a folder of frames."""
    if video.path is None:
        return bool(video.frames)
    return Path(video.root or ".", video.path).is_dir()


def _sampling(value: Any, at: Location) -> VideoSampling:
    if not isinstance(value, dict):
        raise at.wrong(value, "an object with keys such as 'fps', 'num_frames', 'max_frames'")
    try:
        return VideoSampling.read(value)
    except UserError as error:
        problem = str(error).removeprefix("data.video").lstrip(":. ")
        raise at.error(f"settings of a video that don't work ({problem})", "others") from None


def _checked(video: Video, options: dict[str, Any], at: Location) -> Video:
    """A video with its settings, once it is there."""
    whole = replace(video, **options)
    at.reading.check_image(whole, at.source, at.key)
    return whole
