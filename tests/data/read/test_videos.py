"""Videos in every way that people write them, and what is refused."""

import base64
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_vlm.data.conversation import Image, Text, Video
from lightning_vlm.data.read.hf_dataset import HFDataset
from lightning_vlm.data.read.readers import Messages, read
from lightning_vlm.data.video.load import load_video
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import DataError
from tests.support.videos import numbered_pictures, numbers_of, write_numbered

ANSWER = {"role": "assistant", "content": "A cat."}
FILE = Video(Path("a.mp4"), root=Path("."))


@pytest.fixture(scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_numbered(folder / "a.mp4", frames=10)
    write_numbered(folder / "b.mp4", frames=10)
    (folder / "frames").mkdir()
    (folder / "empty").mkdir()
    for number, picture in enumerate(numbered_pictures(4)):
        assert picture.data is not None
        (folder / "frames" / f"{number}.png").write_bytes(picture.data)
    (folder / "cat.png").write_bytes((folder / "frames" / "0.png").read_bytes())
    return folder


@pytest.fixture
def videos(_files: Path, folder: Path) -> Path:
    """The working directory, with videos, frames and a picture in it."""
    shutil.copytree(_files, folder, dirs_exist_ok=True)
    return folder


def user(*parts: Any) -> dict[str, Any]:
    """A turn of the user."""
    return {"role": "user", "content": list(parts)}


def own(part: dict[str, Any]) -> dict[str, Any]:
    """A row of our own format with one part before its question."""
    return parts({"type": "video", **part}, {"type": "text", "text": "What?"})


def parts(*content: Any) -> dict[str, Any]:
    """A row with a list of parts as its question."""
    return {"messages": [user(*content), ANSWER]}


def said(text: str) -> list[dict[str, str]]:
    """A LLaVA conversation."""
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "A cat."}]


def frames(*numbers: int) -> tuple[Image, ...]:
    """Frames by path."""
    return tuple(Image(Path(f"frames/{number}.png"), root=Path(".")) for number in numbers)


LISTED = ["frames/0.png", "frames/1.png"]
OWN = {
    "a file": ({"path": "a.mp4"}, FILE),
    "a folder": ({"path": "frames", "fps": 2.0}, Video(Path("frames"), root=Path("."), fps=2.0)),
    "frames": ({"frames": LISTED, "fps": 2}, Video(frames=frames(0, 1), fps=2.0)),
    "bytes": ({"base64": base64.b64encode(b"abc").decode()}, Video(data=b"abc")),
    "settings": (
        {"path": "a.mp4", "sampling": {"num_frames": 3}},
        Video(Path("a.mp4"), root=Path("."), sampling=VideoSampling(num_frames=3)),
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_our_own_format(case: str, videos: Path, write: Any) -> None:
    part, video = OWN[case]
    for source in (Messages(write(own(part))), read(write(own(part)))):
        (message, _) = source[0].messages
        if case == "settings" and not isinstance(source, Messages):
            continue  # `sampling` is a key of ours alone
        assert message.parts == (video, Text("What?"))
        assert source[0].videos == (video,)


def _with(**settings: Any) -> Video:
    return Video(Path("a.mp4"), root=Path("."), sampling=VideoSampling(**settings))


MANY = {
    "LLaVA": ({"video": "a.mp4", "conversations": said("<video>\nWhat?")}, [FILE, "What?"]),
    "LLaVA-Video": ({"video": "a.mp4", "conversations": said("<image>\nWhat?")}, [FILE, "What?"]),
    "ShareGPT": ({"videos": ["a.mp4"], "conversations": said("What? <video>")}, ["What? ", FILE]),
    "both": (
        {"videos": ["a.mp4"], "images": ["cat.png"], "conversations": said("<image><video>Same?")},
        [Image(Path("cat.png"), root=Path(".")), FILE, "Same?"],
    ),
    "ms-swift": (
        {"messages": [{"role": "user", "content": "What?"}, ANSWER], "videos": ["a.mp4"]},
        [FILE, "What?"],
    ),
    "a question": ({"question": "What?", "answer": "A cat.", "video": "a.mp4"}, [FILE, "What?"]),
    "a caption": ({"video": "a.mp4", "caption": "A cat."}, [FILE]),
    "frames beside": (
        {"video": {"frames": LISTED, "fps": 1}, "question": "What?", "answer": "A cat."},
        [Video(frames=frames(0, 1), fps=1.0), "What?"],
    ),
    "OpenAI": (
        {
            "messages": [
                user({"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "text", "text": "What?"}),
                ANSWER,
            ]
        },
        [FILE, "What?"],
    ),
    "Qwen's settings": (
        {
            "messages": [
                user({"type": "video", "video": "a.mp4", "nframes": 8, "total_pixels": 99}, "What?"),
                ANSWER,
            ]
        },
        [_with(num_frames=8, max_pixels=99), "What?"],
    ),
    "Qwen's rate": (
        {
            "messages": [
                user({"type": "video", "video": "a.mp4", "fps": 1.5, "max_frames": 8, "max_pixels": 50}),
                ANSWER,
            ]
        },
        [_with(fps=1.5, max_frames=8, max_pixels_per_frame=50)],
    ),
    "Qwen's frames": (
        parts({"type": "video", "video": LISTED, "fps": 1.5}),
        [Video(frames=frames(0, 1), fps=1.5)],
    ),
    "Qwen's frames with their rate": (
        parts({"type": "video", "video": LISTED, "sample_fps": 1.5}),
        [Video(frames=frames(0, 1), fps=1.5)],
    ),
    "a folder in Qwen's words": (
        parts({"type": "video", "video": "frames", "fps": 4}),
        [Video(Path("frames"), root=Path("."), fps=4.0)],
    ),
    "a place": (
        {
            "messages": [user({"type": "video"}, {"type": "text", "text": "What?"}), ANSWER],
            "videos": ["a.mp4"],
        },
        [FILE, "What?"],
    ),
    "two videos": (
        {"videos": ["a.mp4", "b.mp4"], "conversations": said("<video><video>Same?")},
        [FILE, Video(Path("b.mp4"), root=Path(".")), "Same?"],
    ),
    "a data URL": (
        {
            "messages": [
                user({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,YWJj"}}),
                ANSWER,
            ]
        },
        [Video(data=b"abc")],
    ),
    "HTML": ({"conversations": said("Is <video> a tag?")}, ["Is <video> a tag?"]),
}


@pytest.mark.parametrize("case", MANY)
def test_formats_of_others(case: str, videos: Path, write: Any) -> None:
    row, expected = MANY[case]
    (message, _) = read(write(row))[0].messages
    assert [part.text if isinstance(part, Text) else part for part in message.parts] == expected


NOTES = {
    "LLaVA-Video": "'<image>' stands for videos in rows that have no pictures, as LLaVA writes them (1 row)",
    "ms-swift": "videos without an '<video>' stand before the first question, "
    "as TRL and ms-swift put them (1 row)",
    "HTML": "'<video>' is ordinary text in rows without a key for videos (1 row)",
}


@pytest.mark.parametrize("case", NOTES)
def test_what_was_chosen_is_said(case: str, videos: Path, write: Any) -> None:
    assert NOTES[case] in read(write(MANY[case][0])).notes


def test_keys_without_effect_are_noted(videos: Path, write: Any) -> None:
    part = {"type": "video", "video": "a.mp4", "resized_height": 280}
    assert (
        "ignored: 'content[*].resized_height' (1 row)"
        in read(write({"messages": [user(part), ANSWER]})).notes
    )


REFUSED = {
    "no such file": (
        {"path": "c.mp4"},
        "path",
        "a video file below the image root '.' (data.image_root); did you mean",
    ),
    "outside": ({"path": "../a.mp4"}, "path", "which is outside '.'"),
    "a URL": ({"path": "https://a.b/c.mp4"}, "path", "videos are only fetched with data.allow_urls: true"),
    "a folder of unknown time": (
        {"path": "frames"},
        "path.fps",
        "a folder of 4 frames whose time is unknown",
    ),
    "a list of unknown time": ({"frames": LISTED}, ".fps", '"fps": 2.0'),
    "no frames": ({"path": "empty", "fps": 1}, "path", "the folder 'empty' without frames"),
    "an empty list": ({"frames": [], "fps": 1}, "frames", "an empty list; expected at least one frame"),
    "a frame that isn't there": ({"frames": ["frames/7.png"], "fps": 1}, "frames[0]", "did you mean"),
    "a file with a rate": (
        {"path": "a.mp4", "fps": 2},
        ".fps",
        'data.video.fps, or "sampling": {"fps": ...}',
    ),
    "no rate": ({"frames": LISTED, "fps": 0}, ".fps", "a finite number above 0"),
    "a wrong setting": (
        {"path": "a.mp4", "sampling": {"fsp": 2}},
        "sampling",
        "there is no key fsp; did you mean fps?",
    ),
    "an unknown key": ({"path": "a.mp4", "start": 2}, "start", "found an unknown key"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_our_own_format_refuses(case: str, videos: Path, write: Any) -> None:
    part, key, message = REFUSED[case]
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        Messages(write(own(part)))
    assert caught.value.source == "data.jsonl:1"
    part_key = caught.value.key.removeprefix("messages[0].content[0]")
    assert part_key in (f".{key}", key, key.removeprefix("path"))


OTHERS_REFUSED = {
    "a cut": ({"type": "video", "video": "a.mp4", "video_start": 2}, "a file that is cut already"),
    "two files": ({"type": "video", "video": "a.mp4", "path": "b.mp4"}, "a video with 'video' and 'path'"),
    "contradiction": (
        {"type": "video", "video": "a.mp4", "fps": 1, "nframes": 2},
        "settings of a video that don't work (found both fps and num_frames",
    ),
    "a misspelt key": ({"type": "video", "video": "a.mp4", "max_frmaes": 2}, "did you mean 'max_frames'?"),
    "a URL": ({"type": "video_url", "video_url": {"url": "http://a.b/c.mp4"}}, "data.allow_urls: true"),
}


@pytest.mark.parametrize("case", OTHERS_REFUSED)
def test_what_is_refused_of_others(case: str, videos: Path, write: Any) -> None:
    part, message = OTHERS_REFUSED[case]
    with pytest.raises(DataError, match=re.escape(message)):
        read(write({"messages": [user(part), ANSWER]}))


def test_more_places_than_videos_and_videos_in_answers(videos: Path, write: Any) -> None:
    row = {"video": "a.mp4", "conversations": said("<video><video>What?")}
    with pytest.raises(DataError, match=re.escape("1 video and 2 places for them in the conversation")):
        read(write(row))
    answer = {"role": "assistant", "content": [{"type": "video", "video": "a.mp4"}]}
    with pytest.raises(DataError, match="a video in an assistant turn"):
        read(write({"messages": [user("What?"), answer]}))


def test_allowed_urls_stay_urls(videos: Path, write: Any) -> None:
    row = {"video": "https://a.b/c.mp4", "question": "What?", "answer": "A cat."}
    assert read(write(row), allow_urls=True)[0].videos == (Video(url="https://a.b/c.mp4"),)


def test_bytes_of_a_hugging_face_dataset(videos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = (videos / "a.mp4").read_bytes()
    rows = {"video": [{"bytes": data, "path": None}], "question": ["What?"], "answer": ["A cat."]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path)
    (video,) = HFDataset(str(tmp_path))[0].videos
    assert video.data == data
    clip = load_video(video, "x:0", "video", VideoSampling(num_frames=5))
    assert numbers_of(clip.frames) == [0, 2, 4, 6, 8]


def test_a_column_of_videos_of_a_hugging_face_dataset(videos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"video": [str(videos / "a.mp4")], "question": ["?"], "answer": ["!"]})
    rows.cast_column("video", datasets.Video()).save_to_disk(tmp_path / "data")
    (video,) = HFDataset(str(tmp_path / "data"), image_root=str(videos))[0].videos
    assert len(load_video(video, "x:0", "video").frames) == 10


def test_several_faults_come_together(videos: Path, write: Any) -> None:
    path = write(own({"path": "c.mp4"}), own({"path": "a.mp4"}), own({"frames": LISTED}))
    with pytest.raises(DataError, match=r"data\.jsonl:3") as caught:
        Messages(path)
    assert "data.jsonl:1" in str(caught.value)
    assert len(Messages(path, on_bad_sample="skip")) == 1
