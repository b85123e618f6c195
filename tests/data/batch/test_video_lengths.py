"""Lengths of samples with videos, found without decoding a frame, are those of real renderings."""

import pickle

import pytest

from lightning_vlm.data.batch.lengths import Ruler, SampleLength, patch_of, patches_of
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.video.sampling import VideoSampling
from tests.support.clips import EVERY_FRAME, MIXED, ONE_MEDIUM, TALKS, VIDEO, clip, talk
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
LONG = talk((clip(9, 33, 91, fps=0.1), "What?"), "It.")  # timestamps of more than one digit
WIDE = talk((clip(6, 200, 40), "What?"), "It.")
SAMPLINGS = {
    "every frame": EVERY_FRAME,
    "some": VideoSampling(num_frames=2),
    "budget": VideoSampling(num_frames=4, max_pixels_per_frame=32 * 32 * 6),
}


@pytest.fixture
def renderer_for(processor_of):
    def load(family, sampling):
        template = "plain" if FAMILIES[family].template is None else None
        return Renderer(processor_of(family, template), 1500, video=sampling)

    return load


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("family", VIDEO)
def test_lengths_are_those_of_real_renderings(renderer_for, family, sampling):
    renderer = renderer_for(family, SAMPLINGS[sampling])
    patch = patch_of(renderer.processor)
    ruler = pickle.loads(pickle.dumps(Ruler(renderer)))
    samples = [*TALKS.values(), LONG, WIDE, *([] if family in ONE_MEDIUM else [MIXED])]
    for sample in samples:
        example = renderer.example(sample)
        expected = SampleLength(len(example.input_ids), patches_of(example.inputs, patch))
        assert expected.patches
        assert ruler.length(sample) == expected
        assert ruler.length(sample) == expected  # as it is remembered


NEEDS_PIXELS = ("video_llama_3",)
"""Families whose number of tokens depends on what the frames show."""


@pytest.mark.parametrize("family", VIDEO)
def test_no_frame_is_decoded(renderer_for, family, monkeypatch):
    ruler = Ruler(renderer_for(family, EVERY_FRAME))
    decoded = []
    monkeypatch.setattr("lightning_vlm.data.render.videos.load_video", lambda *_: decoded.append(1))
    if family in NEEDS_PIXELS:
        return
    for sample in TALKS.values():
        ruler.length(sample)
    assert not decoded
