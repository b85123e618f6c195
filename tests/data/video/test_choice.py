"""The same frames as the processors of the families choose, where these heed a setting."""

import copy
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.video_utils import VideoMetadata

from lightning_vlm.data.video.choice import ProcessorChoice, evenly
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError

FPS, NUMBER = {"fps": 1.0}, {"num_frames": 8}
# What each rule heeds; the published settings of those that have none of their own.
HEEDS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "Qwen2VLVideoProcessor": ({}, [FPS, NUMBER, {"fps": 4, "max_frames": 32}, {"fps": 1, "min_frames": 6}]),
    "Qwen3VLVideoProcessor": ({}, [{}, FPS, NUMBER]),
    "VideoLlama3VideoProcessor": ({}, [FPS, NUMBER, {"fps": 4, "max_frames": 32}]),
    "Ernie4_5_VLMoeVideoProcessor": ({}, [{}, FPS, {"num_frames": 16}, {"max_frames": 20}]),
    "InternVLVideoProcessor": ({"initial_shift": True}, [FPS, NUMBER]),
    "SmolVLMVideoProcessor": ({"num_frames": 64, "fps": 1}, [{}, {"fps": 2}]),
    "Glm4vVideoProcessor": ({}, [{}, FPS]),
    "Glm46VVideoProcessor": ({}, [{}]),
    "MiniCPMV4_6VideoProcessor": ({}, [{}]),
    "Molmo2VideoProcessor": ({}, [{}, FPS]),
    "Gemma4VideoProcessor": ({}, [{}, {"num_frames": 16}]),
    "LlavaOnevisionVideoProcessor": ({}, [FPS, NUMBER]),
    "PerceptionLMVideoProcessor": ({"num_frames": 32}, [{}, NUMBER]),
}
CASES = [(name, user) for name, (_, asked) in HEEDS.items() for user in asked]


def processor(name: str) -> Any:
    """A video processor with its own settings."""
    own, _ = HEEDS[name]
    return getattr(transformers, name)(**own)


def video(total: int, fps: float) -> VideoMetadata:
    """What is known of a video."""
    return VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps, width=64, height=48)


def theirs(name: str, total: int, fps: float, user: dict[str, Any]) -> list[int]:
    """What `preprocess` of the processor would choose, given the same settings."""
    own = processor(name)
    asked = {key: getattr(own, key, None) for key in own.valid_kwargs.__annotations__}
    for key, other in (("fps", "num_frames"), ("num_frames", "fps")):
        if key in user:
            asked[other] = None
    for key in ("min_frames", "max_frames"):  # Qwen3-VL reads its own
        if key in user:
            setattr(own, key, user[key])
    asked |= user
    return [int(index) for index in own.sample_frames(metadata=video(total, fps), **asked)]


@pytest.mark.parametrize(("name", "user"), CASES, ids=[f"{name}-{user}" for name, user in CASES])
def test_frames_are_those_of_the_processor(name: str, user: dict[str, Any]) -> None:
    choose = ProcessorChoice(processor(name))
    for total, fps in ((300, 30.0), (450, 29.97), (9000, 30.0), (721, 24.0)):
        assert choose(video(total, fps), VideoSampling(**user)) == theirs(name, total, fps, user)


@pytest.mark.parametrize("name", HEEDS)
def test_a_short_video_gives_all_of_its_frames_where_more_are_wanted(name: str) -> None:
    choose = ProcessorChoice(processor(name))
    for total in (1, 3):
        assert choose(video(total, 25.0), VideoSampling(num_frames=16)) == list(range(total))


@pytest.mark.parametrize("name", HEEDS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_settings_hold_whatever_the_rule(name: str, data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 3000), "total")
    rate = data.draw(st.floats(1, 120), "rate")
    asked: dict[str, Any] = {}
    if data.draw(st.booleans()):
        asked["num_frames"] = data.draw(st.integers(1, 64))
    else:
        asked["fps"] = data.draw(st.floats(0.01, 60))
        asked["min_frames"] = data.draw(st.integers(1, 8))
        asked["max_frames"] = data.draw(st.integers(8, 64))
    sampling = VideoSampling(**asked)
    for choose in (ProcessorChoice(processor(name)), evenly):
        chosen = choose(video(total, rate), sampling)
        assert chosen == choose(video(total, rate), sampling)
        assert all(isinstance(index, int) and 0 <= index < total for index in chosen)
        assert chosen == sorted(chosen)
        if "num_frames" in asked:  # families round it to what they take at once
            assert abs(len(chosen) - min(total, asked["num_frames"])) < 2
        else:
            assert min(total, asked["min_frames"]) <= len(chosen) <= min(total, asked["max_frames"])


@pytest.mark.parametrize(
    "name", ["Glm46VVideoProcessor", "MiniCPMV4_6VideoProcessor", "Gemma4VideoProcessor"]
)
def test_a_rate_that_the_rule_doesnt_heed_holds_too(name: str) -> None:
    choose = ProcessorChoice(processor(name))
    assert len(choose(video(600, 30.0), VideoSampling(fps=2))) == 40
    assert len(choose(video(600, 30.0), VideoSampling(fps=0.5))) == 10


@pytest.mark.parametrize(
    "name", ["Qwen2VLVideoProcessor", "LlavaOnevisionVideoProcessor", "InternVLVideoProcessor"]
)
def test_a_processor_that_doesnt_say_how_many_needs_a_setting(name: str) -> None:
    choose = ProcessorChoice(getattr(transformers, name)())
    with pytest.raises(UserError, match=rf"data.video: {name} doesn't say how many .* set fps, such as 2"):
        choose.check(VideoSampling())
    choose.check(VideoSampling(max_frames=16))
    assert len(choose(video(600, 30.0), VideoSampling(max_frames=16))) == 16


def test_nothing_of_the_processor_is_changed() -> None:
    own = processor("Qwen3VLVideoProcessor")
    before = copy.deepcopy(own.__dict__)
    ProcessorChoice(own)(video(600, 30.0), VideoSampling(num_frames=8, max_frames=9))
    assert own.__dict__ == before
