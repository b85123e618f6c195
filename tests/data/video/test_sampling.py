"""The settings: what is wrong is said, and a row's go before those of the run."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.data.video.sizes import frame_size
from lightning_vlm.errors import UserError

WRONG = {
    "both": ({"fps": 1, "num_frames": 2}, "data.video: found both fps and num_frames; expected one of them"),
    "no rate": ({"fps": 0}, "data.video.fps: found 0; expected frames a second, a number above 0"),
    "infinite": (
        {"fps": float("inf")},
        "data.video.fps: found inf; expected frames a second, a number above 0",
    ),
    "none": ({"num_frames": 0}, "data.video.num_frames: found 0; expected a whole number of 1 or more"),
    "half": ({"max_frames": 2.5}, "data.video.max_frames: found 2.5; expected a whole number of 1 or more"),
    "true": ({"max_pixels": True}, "data.video.max_pixels: found True; expected a whole number of 1 or more"),
    "order": (
        {"min_frames": 5, "max_frames": 4},
        "data.video.min_frames: found 5, more than max_frames (4); raise the latter",
    ),
    "name": ({"maxframes": 4}, "data.video: there is no key maxframes; did you mean max_frames?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(UserError, match=re.escape(message)):
        VideoSampling.read(given)


def test_settings_of_a_row_go_before_those_of_the_run() -> None:
    run = VideoSampling(fps=2, max_frames=16, max_pixels=100)
    assert VideoSampling(num_frames=4).over(run) == VideoSampling(num_frames=4, max_frames=16, max_pixels=100)
    assert VideoSampling(max_frames=3).over(run) == VideoSampling(fps=2, max_frames=3, max_pixels=100)
    assert VideoSampling().over(run) == run
    with pytest.raises(UserError, match=r"data\.video\.min_frames: found 20, more than max_frames"):
        VideoSampling(min_frames=20).over(run)


SIDE = st.integers(1, 4000)
BUDGET: Any = st.none() | st.integers(1, 10_000_000)


@given(SIDE, SIDE, st.integers(1, 768), BUDGET, BUDGET, BUDGET)
def test_frames_are_within_the_budget_and_keep_their_shape(
    height: int, width: int, frames: int, least: int | None, most: int | None, whole: int | None
) -> None:
    if least is not None and most is not None:
        least, most = sorted((least, most))
    sampling = VideoSampling(min_pixels_per_frame=least, max_pixels_per_frame=most, max_pixels=whole)
    new_height, new_width = frame_size(height, width, frames, sampling)
    pixels = new_height * new_width
    is_line = 1 in (new_height, new_width)  # a side can't be less than a pixel
    for limit in (most, None if whole is None else whole // frames):
        assert limit is None or pixels <= limit or is_line
    if least is None and most is None and whole is None:
        assert (new_height, new_width) == (height, width)
    if not is_line:  # each side is off by less than a pixel
        scale = (pixels / (height * width)) ** 0.5
        assert abs(new_height - height * scale) < 1 + new_height / new_width
        assert abs(new_width - width * scale) < 1 + new_width / new_height
