"""A preview shows each frame of a video with its time and what it costs in tokens."""

import PIL.Image
import pytest

from lightning_vlm import VLMModule
from lightning_vlm.data.conversation import Video
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.inspect import page
from lightning_vlm.inspect.videos import SHOWN, strips
from lightning_vlm.kinds import Kind
from tests.inspect.samples import png, preview_of, printed
from tests.support.clips import EVERY_FRAME, PICTURE, TALKS, VIDEO, clip, talk
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")


def film(frames, fps=4.0):
    """A video that grows lighter."""
    return Video(
        frames=tuple(png(PIL.Image.new("L", (48, 32), 9 * place)) for place in range(frames)), fps=fps
    )


@pytest.fixture(scope="module")
def preview(model_folder):
    module = VLMModule(str(model_folder("qwen3_vl")))
    samples = [
        talk((film(12), "Where does it go?"), "Up."),
        talk((PICTURE, "What is this?"), "Noise."),
        talk((film(2), film(SHOWN + 4, fps=0.1), "Which is longer?"), "The second."),
    ]
    return preview_of(module, *samples, video=VideoSampling(num_frames=100), max_length=600)


@pytest.mark.parametrize("family", VIDEO)
def test_the_costs_of_frames_are_all_tokens_of_a_video(processor_of, family):
    template = "plain" if FAMILIES[family].template is None else None
    renderer = Renderer(processor_of(family, template), video=EVERY_FRAME)
    for sample in (TALKS["one"], TALKS["odd number of frames"], TALKS["two"]):
        example = renderer.example(sample)
        found = strips(renderer, example)
        assert sum(strip.tokens for strip in found) == (example.kinds == Kind.IMAGE).sum()
        for strip in found:
            assert sum(frame.tokens for frame in strip.frames) == pytest.approx(strip.tokens)
            assert max(frame.tokens for frame in strip.frames) < strip.tokens
            assert [frame.seconds for frame in strip.frames] == [0.5 * at for at in range(strip.seen)]


def test_the_terminal_has_a_line_for_each_video(preview):
    shown = printed(preview)
    (line,) = [line for line in shown.split("\n") if "12 pictures" in line]
    tokens = preview.samples[0].videos[0].tokens
    each = f"{tokens / 12:.4g}"
    assert line == (
        f"  video 1: 12 pictures: 12 frames at 0 s to 2.75 s, of 4 a second; {tokens} tokens, {each} a frame"
    )
    assert f" video ×{tokens} " in shown
    assert "  video 2: 28 pictures: 28 frames at 0 s to 4:30.0 min, of 0.1 a second; " in shown
    kinds = preview.by_kind()
    assert (
        kinds[Kind.IMAGE].tokens == sum(video.tokens for one in preview.samples for video in one.videos) + 4
    )


def test_the_page_has_a_strip_of_frames_with_captions(preview):
    html = page.page(preview)
    assert html.count("<div class=film>") == 3
    assert html.count('alt="frame at ') == 12 + 2 + SHOWN
    assert f"; {SHOWN} of them are shown" in html
    frame = preview.samples[0].videos[0].frames[1]
    assert f"<figcaption>0.25 s<br>{frame.tokens:.4g} tokens</figcaption>" in html
    assert frame.image.getpixel((0, 0)) == (9, 9, 9)


def test_samples_with_videos_are_among_those_shown(preview, model_folder):
    module = VLMModule(str(model_folder("qwen3_vl")))
    samples = [talk("Hello", "Hello.")] * 20 + [talk((clip(), "?"), "No.")]
    found = preview_of(module, *samples, samples=2, video=EVERY_FRAME)
    assert sorted(len(sample.videos) for sample in found.samples) == [0, 1]
