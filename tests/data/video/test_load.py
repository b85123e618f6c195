"""Frames that were written come back: the right ones, upright, with their times."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lightning_vlm.data.conversation import Video
from lightning_vlm.data.video.load import load_video, video_shape
from lightning_vlm.data.video.sampling import VideoSampling
from tests.support.videos import numbered_pictures, numbers_of, write_numbered

SEVEN = VideoSampling(num_frames=7)
FILES = {
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
    settings = FILES[name]
    write_numbered(tmp_path / name, **settings)
    clip = load_video(of(tmp_path / name), "v:1", "video", SEVEN)
    assert numbers_of(clip.frames) == clip.metadata.frames_indices == [0, 7, 14, 21, 28, 35, 42]
    fps = float(settings.get("fps", 25))
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
