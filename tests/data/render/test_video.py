"""Samples with videos: ids, pixels and times are those of the family's own `apply_chat_template`.

What is learned is the answers.
"""

import warnings

import pytest
import torch

from lightning_vlm.data.conversation import Text
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from tests.support.clips import EVERY_FRAME, MIXED, ONE_MEDIUM, TALKS, VIDEO, clip, talk
from tests.support.rendering import END, assert_like, gap_of, own_inputs, supervised
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")


@pytest.fixture(scope="module")
def renderer_of(processor_of):
    """The renderer of a family that looks at each frame."""
    made = {}

    def renderer(family, template=None):
        if FAMILIES[family].template is None:
            template = "plain"
        if (family, template) not in made:
            made[family, template] = Renderer(processor_of(family, template), video=EVERY_FRAME)
        return made[family, template]

    return renderer


def talks_of(family):
    return TALKS if family in ONE_MEDIUM else {**TALKS, "mixed": MIXED}


CASES = [(family, name) for family in VIDEO for name in talks_of(family)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_ids_pixels_and_times_are_the_processors_own(renderer_of, family, name):
    renderer, conversation = renderer_of(family), talks_of(family)[name]
    assert_like(renderer.example(conversation), own_inputs(renderer, conversation))
    prompt, _ = renderer.prompt(conversation)
    assert_like(prompt, own_inputs(renderer, conversation, last=False))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_answers_alone_are_learned(renderer_of, family, name):
    renderer, conversation = renderer_of(family), talks_of(family)[name]
    example = renderer.example(conversation)
    answers = [message.parts[0].text for message in conversation.messages if message.role == "assistant"]
    own = FAMILIES[family].template is not None
    gap = gap_of(renderer, family, None if own else "plain")
    end = END[family] if own else renderer.tokenizer.eos_token
    assert supervised(renderer, example) == [f"{gap}{answer}{end}" for answer in answers]
    assert len(example.clips) == len(conversation.videos)
    for start, stop, metadata in example.clips:
        assert (example.kinds[start:stop] == Kind.IMAGE).all()
        assert len(metadata.frames_indices) >= 3
    parts = [part for message in conversation.messages for part in message.parts]
    words = [part.text for part in parts if isinstance(part, Text)]
    asked = renderer.tokenizer.decode(example.input_ids[example.kinds == Kind.INSTRUCTION])
    assert asked == "".join(word for word in words if word not in answers)


@pytest.mark.parametrize("template", ["plain", "numbered-images"])
@pytest.mark.parametrize("family", VIDEO)
def test_ready_templates_have_places_for_videos(processor_of, family, template):
    renderer = Renderer(processor_of(family, template), video=EVERY_FRAME)
    example = renderer.example(TALKS["two"])
    own = Renderer(processor_of(family), video=EVERY_FRAME) if FAMILIES[family].template else renderer
    expected = own.example(TALKS["two"])
    for name in ("pixel_values_videos", "pixel_values", "video_grid_thw"):
        assert (name in example.inputs) == (name in expected.inputs)
        if name in example.inputs:
            assert torch.equal(example.inputs[name], expected.inputs[name])
    found, other = ([stop - start for start, stop, _ in one.clips] for one in (example, expected))
    assert found == other


@pytest.mark.parametrize("family", ONE_MEDIUM)
def test_pictures_beside_videos_are_refused_where_they_would_be_lost(renderer_of, family):
    with pytest.raises(DataError, match=r"^videos.jsonl:1: .*pictures and videos in one sample, of which"):
        renderer_of(family).example(MIXED)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in VIDEO])
def test_a_family_without_video_says_what_to_do(processor_of, family):
    template = "plain" if FAMILIES[family].template is None else None
    with pytest.raises(DataError, match=r"^videos.jsonl:1: .*(pictures only; .* a model that|and 0 place)"):
        Renderer(processor_of(family, template)).example(TALKS["one"])


SAME_FRAMES = ("llava_onevision", "llava_next_video", "video_llava", "internvl", "internvl3_5")


@pytest.mark.parametrize("family", VIDEO)
def test_videos_of_several_lengths_in_a_sample(renderer_of, family):
    conversation = talk((clip(), "and", clip(2, seed=1), "?"), "No.")
    renderer = renderer_of(family)
    if family in SAME_FRAMES:
        with pytest.raises(DataError, match="as many frames each in one sample"):
            renderer.example(conversation)
    else:
        assert_like(renderer.example(conversation), own_inputs(renderer, conversation))


def test_text_that_spells_a_video_stays_text(renderer_of):
    for family in VIDEO:
        renderer = renderer_of(family)
        token = renderer.processor.video_token
        example = renderer.example(talk((clip(), f"{token}?"), f"{token}!"))
        assert renderer.tokenizer.decode(example.input_ids[example.kinds == Kind.INSTRUCTION]) == f"{token}?"
        assert len(example.clips) == 1


@pytest.mark.parametrize("family", ["smolvlm", "internvl", "qwen3_vl"])
def test_budgets_without_effect_on_tokens_are_said(processor_of, family):
    processor, sampling = processor_of(family), VideoSampling(num_frames=4, max_pixels_per_frame=900)
    with warnings.catch_warnings(record=True, action="always") as found:
        Renderer(processor, video=sampling)
        Renderer(processor, video=EVERY_FRAME)
    said = [str(warning.message) for warning in found if "budgets of pixels" in str(warning.message)]
    assert len(said) == (family != "qwen3_vl")
    assert all(type(processor).__name__ in line for line in said)


BUDGET = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}


@pytest.mark.parametrize("family", BUDGET)
def test_budgets_of_pixels_reach_the_familys_own_arithmetic(processor_of, family):
    side = BUDGET[family]
    processor = processor_of(family)
    processor.video_processor.size = {"shortest_edge": side**2, "longest_edge": 4000 * side**2}
    conversation = talk((clip(4, 5 * side, 4 * side), "What?"), "It.")

    def area(**sampling):
        renderer = Renderer(processor, video=VideoSampling(num_frames=64, **sampling))
        time, height, width = renderer.example(conversation).inputs["video_grid_thw"][0].tolist()
        assert time == 2
        return height * width // 4

    assert area() == 20
    assert area(max_pixels_per_frame=12 * side**2) == 12
    assert area(max_pixels=4 * 6 * side**2) == 6
    assert area(max_pixels=4 * 6 * side**2, max_pixels_per_frame=2 * side**2) == 2
