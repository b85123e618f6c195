"""Frames that were written come back: the right ones, upright, with their times."""

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vlm.data.conversation import Video
from lightning_vlm.data.video.load import load_video, video_shape
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.data.video.upright import turned_by, upright
from tests.support.videos import numbered_pictures, numbers_of, write_numbered

SEVEN = VideoSampling(num_frames=7)
FILES: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "odd_size.mp4": {"size": (81, 49), "pixels": "yuv444p"},
    "vp9.webm": {"codec": "libvpx-vp9", "fps": Fraction(30000, 1001)},
    "xvid.avi": {"codec": "mpeg4"},
    "h264_in.avi": {"codec": "libx264"},
    "film.mkv": {"fps": Fraction(24000, 1001)},
    "broadcast.ts": {},
    "disc.mpg": {"codec": "mpeg2video"},
    "flash.flv": {},
    "moving.gif": {"codec": "gif", "pixels": "rgb8"},
    "every_frame_a_key.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "raw.h264": {},
    "with_sound.mp4": {"sound": True},
    "one_key.mp4": {"gop": 1000},
}


def of(path: Path) -> Video:
    """The video at a path."""
    return Video(Path(path.name), root=path.parent)


@pytest.mark.parametrize("name", FILES)
def test_chosen_frames_are_the_frames_that_were_written(name: str, tmp_path: Path) -> None:
    options = FILES[name]
    write_numbered(tmp_path / name, **options)
    clip = load_video(of(tmp_path / name), "v:1", "video", SEVEN)
    assert numbers_of(clip.frames) == clip.metadata.frames_indices == [0, 7, 14, 21, 28, 35, 42]
    fps = float(options.get("fps", 25))
    assert clip.metadata.fps == pytest.approx(fps, rel=1e-9)
    assert clip.metadata.timestamps == pytest.approx([number / fps for number in numbers_of(clip.frames)])
    assert clip.metadata.total_num_frames == 50
    shape = video_shape(of(tmp_path / name), "v:1", "video", SEVEN)
    assert (shape.frames, 3, shape.height, shape.width) == tuple(clip.frames.shape)
    assert shape.metadata == clip.metadata


def test_pictures_are_frames(tmp_path: Path) -> None:
    video = Video(frames=numbered_pictures(12), fps=4.0)
    clip = load_video(video, "v:1", "video", VideoSampling(fps=1))
    assert numbers_of(clip.frames) == [0, 4, 8]
    assert clip.metadata.timestamps == [0, 1, 2]
    for number, picture in enumerate(video.frames):
        assert picture.data is not None
        (tmp_path / f"frame{number}.png").write_bytes(picture.data)
    (tmp_path / "notes.txt").touch()
    folder = Video(Path("."), root=tmp_path, fps=4.0)
    same = load_video(folder, "v:1", "video", VideoSampling(fps=1))
    assert np.array_equal(same.frames, clip.frames)  # frame10 comes behind frame9
    assert same.metadata == clip.metadata


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of an even video, with frames that are stored in another order than they are shown."""
    path = tmp_path_factory.mktemp("even") / "even.mp4"
    write_numbered(path, 100)
    return path


PICTURES = Video(frames=numbered_pictures(100), fps=25.0)
ANY: Any = st.fixed_dictionaries(
    {},
    optional={
        "fps": st.floats(0.1, 60),
        "min_frames": st.integers(1, 8),
        "max_frames": st.integers(8, 120),
        "max_pixels_per_frame": st.integers(2000, 6000),
        "max_pixels": st.integers(240_000, 400_000),
    },
)


@settings(deadline=None, max_examples=40)
@given(asked=ANY, number=st.none() | st.integers(8, 150))
def test_any_settings_give_the_frames_that_the_metadata_names(
    even: Path, asked: dict[str, Any], number: int | None
) -> None:
    if number is not None:
        asked = {"num_frames": number, "max_frames": 150}
    sampling = VideoSampling(**asked)
    clip = load_video(of(even), "v:1", "video", sampling)
    assert numbers_of(clip.frames) == clip.metadata.frames_indices
    assert clip.metadata.timestamps == [number / 25 for number in numbers_of(clip.frames)]
    shape = video_shape(of(even), "v:1", "video", sampling)
    assert (shape.frames, 3, shape.height, shape.width) == tuple(clip.frames.shape)
    pictures = load_video(PICTURES, "v:1", "video", sampling)
    assert numbers_of(pictures.frames) == numbers_of(clip.frames)
    assert pictures.frames.shape == clip.frames.shape


def test_every_turn_and_mirror_image_is_what_the_matrix_says() -> None:
    frame = np.arange(6).reshape(2, 3, 1)
    one = 1 << 16
    seen = set()
    for a, b, c, d in itertools.product((-one, 0, one), repeat=4):
        is_turn = (a and d and not b and not c) or (b and c and not a and not d)
        if not is_turn:
            continue
        matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes()
        # Where each pixel goes, by the definition of the matrix.
        places = {(a * x + c * y, b * x + d * y): frame[y, x, 0] for y in range(2) for x in range(3)}
        columns = sorted({x for x, _ in places})
        rows = sorted({y for _, y in places})
        wanted = np.array([[places[x, y] for x in columns] for y in rows])[..., None]
        assert np.array_equal(upright(frame, turned_by(matrix)), wanted)
        seen.add(wanted.tobytes())
    assert len(seen) == 8
