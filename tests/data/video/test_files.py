"""Files that are turned, uneven, long, broken or no videos."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from lightning_vlm.data.conversation import Image, Video
from lightning_vlm.data.video import av_file, load
from lightning_vlm.data.video.load import load_video, video_shape
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import DataError, UserError
from tests.support.videos import numbered, numbered_pictures, numbers_of, repeat, write_numbered, write_sound

SEVEN = VideoSampling(num_frames=7)


def of(path: Path) -> Video:
    """The video at a path."""
    return Video(Path(path.name), root=path.parent)


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    90: lambda frame: np.rot90(frame, -1),
    -90: np.rot90,
    180: lambda frame: np.rot90(frame, 2),
}


@pytest.mark.parametrize("degrees", TURNED)
def test_a_turned_video_stands_upright(degrees: int, tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    write_numbered(path, 20, rotation=degrees, stored=TURNED[degrees])
    clip = load_video(of(path), "v:1", "video", SEVEN)
    assert numbers_of(clip.frames) == clip.metadata.frames_indices
    assert clip.frames.shape[2:] == (48, 80)
    shape = video_shape(of(path), "v:1", "video", SEVEN)
    assert (shape.height, shape.width) == (clip.metadata.height, clip.metadata.width) == (48, 80)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_frames_are_those_that_are_shown_at_their_times(suffix: str, tmp_path: Path) -> None:
    """A slide show: 25 frames in the first second, then nothing for 4 seconds, then 5 a second."""
    path = tmp_path / f"slides.{suffix}"
    times = [number * 0.04 if number < 25 else number * 0.2 for number in range(50)]
    write_numbered(path, times=times)
    clip = load_video(of(path), "v:1", "video", VideoSampling(num_frames=20))
    for number, time in zip(numbers_of(clip.frames), clip.metadata.timestamps, strict=True):
        shown = max(place for place, start in enumerate(times) if start <= time + 1e-3)
        assert number == shown
    assert clip.metadata.duration == pytest.approx(9.8, abs=0.25)


def test_times_that_a_container_rounds_are_even(tmp_path: Path) -> None:
    path = tmp_path / "rounded.mkv"
    write_numbered(path, times=[round(number / 29.97, 3) for number in range(50)])
    clip = load_video(of(path), "v:1", "video", SEVEN)
    assert numbers_of(clip.frames) == clip.metadata.frames_indices
    assert clip.metadata.fps == pytest.approx(29.97, rel=0.01)


def test_100_000_frames_cost_no_more_than_those_that_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_numbered(tmp_path / "one.mp4", 250, gop=50, options={"bf": "0"})
    repeat(tmp_path / "one.mp4", tmp_path / "long.mp4", 400)
    decoded = []
    advance = av_file.Reader._advance
    monkeypatch.setattr(
        av_file.Reader, "_advance", lambda self, wanted: (advance(self, wanted), decoded.append(self._at[0]))
    )
    clip = load_video(of(tmp_path / "long.mp4"), "v:1", "video", VideoSampling(num_frames=9))
    assert clip.metadata.total_num_frames == 100_000
    indices = clip.metadata.frames_indices
    assert indices is not None
    assert indices[-1] == 88_888
    assert numbers_of(clip.frames) == [index % 250 for index in indices]
    assert len(decoded) <= 9 * 50
    assert clip.frames.nbytes < 200_000


def test_frames_close_together_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "a.mp4", 100, gop=20)
    decoded = []
    advance = av_file.Reader._advance
    monkeypatch.setattr(
        av_file.Reader, "_advance", lambda self, wanted: (advance(self, wanted), decoded.append(self._at[0]))
    )
    clip = load_video(of(tmp_path / "a.mp4"), "v:1", "video", VideoSampling(num_frames=50))
    assert numbers_of(clip.frames) == clip.metadata.frames_indices
    assert len(decoded) <= 100


def cut(path: Path, share: float = 0.5) -> None:
    """Take the end of a file away."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _truncated(path: Path, **settings: str) -> None:
    write_numbered(path, 200, **settings)  # type: ignore[arg-type]
    cut(path)


def _header_first(path: Path) -> None:
    """An MP4 file for the web, whose header is whole although its end is missing."""
    write_numbered(path.with_name("whole.mp4"), 200)
    whole_path, options = path.with_name("whole.mp4"), {"movflags": "+faststart"}
    with av.open(str(whole_path)) as whole, av.open(str(path), "w", options=options) as output:
        stream = output.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    cut(path, 0.7)


def _broken(path: Path) -> None:
    write_numbered(path, 200)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : len(data) // 2] = np.random.default_rng(0).bytes(len(data) // 2 - third)
    path.write_bytes(bytes(data))


def _without_frames(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()


def _playlist(path: Path) -> None:
    write_numbered(path.with_name("secret.mp4"), 5)
    secret = path.with_name("secret.mp4").as_uri()
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n")


WHOLE = "expected a whole video file"
CANT = "a file that can't be decoded (Invalid data found when processing input); " + WHOLE
COUNTED = "of the 200 frames that its header names; " + WHOLE
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "end.mp4": (
        _truncated,
        CANT,
    ),
    "end_of_web.mp4": (_header_first, COUNTED),
    "end.mkv": (_truncated, "seconds that its header names; " + WHOLE),
    "end.webm": (
        lambda path: _truncated(path, codec="libvpx-vp9"),
        "of the 8.0 seconds that its header names",
    ),
    "end.avi": (
        lambda path: _truncated(path, codec="mpeg4"),
        COUNTED,
    ),
    "broken.mp4": (
        _broken,
        CANT,
    ),
    "sound.mp4": (write_sound, "a file with audio only; expected a file with a video in it"),
    "no_frames.mp4": (_without_frames, "a file with nothing in it; expected a file with a video in it"),
    "no_frames.mkv": (_without_frames, "a file that can't be decoded (End of file); " + WHOLE),
    "empty.mp4": (lambda path: path.touch(), "an empty file; " + WHOLE),
    "text.mp4": (lambda path: path.write_text("a cat " * 100), "a file that can't be decoded (Invalid data"),
    "list.m3u8": (_playlist, "a file that is no video; expected a video file such as MP4, WebM, MKV or AVI"),
    "list.mp4": (_playlist, CANT),
    "cat.png": (lambda path: PIL.Image.new("RGB", (9, 9)).save(path), "a playlist or a picture is none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    make(tmp_path / name)
    for use in (load_video, video_shape):
        if name == "broken.mp4" and use is video_shape:
            continue  # it is the pixels that are broken
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            use(of(tmp_path / name), "pets.jsonl:3", "messages[0].content[0]", SEVEN)
        assert (caught.value.source, caught.value.key) == ("pets.jsonl:3", "messages[0].content[0]")
        assert caught.value.found.startswith(f"'{name}': ")


def test_bad_bytes_are_refused() -> None:
    with pytest.raises(DataError, match=r"found 5 bytes: a file that can't be decoded"):
        load_video(Video(data=b"a cat"), "v:1", "video", SEVEN)


def test_bytes_of_a_file() -> None:
    file = io.BytesIO()
    write_numbered(file, 20, container="mp4")
    clip = load_video(Video(data=file.getvalue()), "v:1", "video", SEVEN)
    assert numbers_of(clip.frames) == clip.metadata.frames_indices


def test_frames_of_other_sizes_and_broken_ones_are_refused() -> None:
    first = numbered_pictures(2)
    (other,) = numbered_pictures(1, 96, 48)
    with pytest.raises(DataError, match=r"video.frames\[2\]: found a frame of 96×48 pixels; expected 80×48"):
        load_video(Video(frames=(*first, other), fps=1.0), "v:1", "video")
    with pytest.raises(DataError, match=r"video.frames\[2\]: found 3 bytes, which is not a picture"):
        load_video(Video(frames=(*first, Image(data=b"cat")), fps=1.0), "v:1", "video")


def test_more_than_fits_into_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_numbered(tmp_path / "a.mp4", 50)
    monkeypatch.setattr(load, "MOST_BYTES", 100_000)
    message = r"found 50 frames of 80×48 pixels, .*; set data.video.max_frames, or max_pixels_per_frame"
    with pytest.raises(DataError, match=message):
        load_video(of(tmp_path / "a.mp4"), "v:1", "video")
    clip = load_video(of(tmp_path / "a.mp4"), "v:1", "video", VideoSampling(max_pixels_per_frame=640))
    assert clip.frames.nbytes <= 100_000


def test_more_frames_than_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av_file, "MOST_FRAMES", 19)
    write_numbered(tmp_path / "a.mp4", 20)
    with pytest.raises(
        DataError, match=r"found 'a.mp4': a video of more than 19 frames; expected a shorter one"
    ):
        video_shape(of(tmp_path / "a.mp4"), "v:1", "video", SEVEN)


def test_far_more_decoding_than_choosing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame 14 takes the 14 before it, or two where every fourth is a keyframe."""
    monkeypatch.setattr(av_file, "MOST_DECODED", 80 * 48 * 14)
    for gop in (4, 100):
        write_numbered(tmp_path / f"{gop}.mp4", 20, gop=gop)

    def wanted(*_: object) -> list[int]:
        return [14]

    assert numbers_of(load_video(of(tmp_path / "4.mp4"), "v:1", "video", SEVEN, wanted).frames) == [14]
    with pytest.raises(DataError, match="15 frames of 80×48 pixels, all of which have to be decoded"):
        load_video(of(tmp_path / "100.mp4"), "v:1", "video", SEVEN, wanted)


def test_budgets_make_frames_smaller(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", 10, size=(320, 200))
    sampling = VideoSampling(max_pixels_per_frame=16_000)
    clip = load_video(of(tmp_path / "a.mp4"), "v:1", "video", sampling)
    assert clip.frames.shape[2:] == (100, 160)
    assert numbers_of(clip.frames) == list(range(10))
    wanted = PIL.Image.fromarray(numbered(9, 320, 200)).resize((160, 100), PIL.Image.Resampling.BICUBIC)
    difference = np.abs(clip.frames[9].permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted).astype(int))
    assert difference.mean() < 8  # what compression costs
    whole = load_video(of(tmp_path / "a.mp4"), "v:1", "video", VideoSampling(max_pixels=160_000))
    assert whole.frames.shape == clip.frames.shape


def test_settings_of_a_row_go_before_those_of_the_run(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", 50)
    video = Video(Path("a.mp4"), root=tmp_path, sampling=VideoSampling(num_frames=2))
    clip = load_video(video, "v:1", "video", VideoSampling(fps=5, max_frames=8))
    assert numbers_of(clip.frames) == [0, 25]
    with pytest.raises(DataError, match="contradict one another"):
        load_video(video, "v:1", "video", VideoSampling(min_frames=3))


def test_a_changed_file_is_measured_again(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", 10)
    assert video_shape(of(tmp_path / "a.mp4"), "v:1", "video").frames == 10
    write_numbered(tmp_path / "a.mp4", 20)
    assert video_shape(of(tmp_path / "a.mp4"), "v:1", "video").frames == 20


def test_without_pyav_frames_still_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning_vlm.data.video.av_file")
    monkeypatch.delattr("lightning_vlm.data.video.av_file")
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"a cat")
    with pytest.raises(UserError, match=r"need PyAV \(.*\); run `pip install 'lightning-vlm\[video\]'`"):
        load_video(of(tmp_path / "a.mp4"), "v:1", "video", SEVEN)
    clip = load_video(Video(frames=numbered_pictures(3), fps=1.0), "v:1", "video")
    assert numbers_of(clip.frames) == [0, 1, 2]
