"""Exports of models that learned from videos: proved with videos, and served as they were trained."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from transformers.video_utils import VideoMetadata

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.video.choice import ProcessorChoice
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.export.serving import serve_as_trained, trained_sampling
from lightning_vlm.export.trained import ExportRequest, load_trained
from lightning_vlm.export.verification import verify
from lightning_vlm.export.write import write
from tests.support.clips import PICTURE, VIDEO, clip, talk
from tests.support.packed import OfList
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
QUESTIONS = [
    talk((clip(6, fps=4.0), "What moves?"), "Nothing."),
    talk((PICTURE, "What is this?"), "Noise."),
    talk((clip(3, 40, 80, seed=1), "And here?"), "Nothing either."),
]
SAMPLING = {"num_frames": 4}


@pytest.fixture(scope="module")
def exported(request, model_folder, tmp_path_factory, warm_interpreter):
    """Folders of the chosen families after a step of training on videos, proved in one fresh process."""
    families = [
        item.callspec.params["family"]
        for item in request.session.items
        if getattr(item, "module", None) is request.module and "exported" in item.fixturenames
    ]
    written = {}
    for family in dict.fromkeys(families):
        template = None if FAMILIES[family].template else "plain"
        module = VLMModule(
            str(model_folder(family)), adapt={"language": {"lora": {"r": 2}}}, chat_template=template
        )
        data = VLMDataModule(train=OfList(QUESTIONS), batch_size=3, video=SAMPLING)
        folder = tmp_path_factory.mktemp(family)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(module, data)
        trainer.save_checkpoint(folder / "last.ckpt")
        request_ = ExportRequest(folder / "last.ckpt", source=OfList(QUESTIONS), samples=3)
        trained = load_trained(request_)
        assert trained.video == VideoSampling(**SAMPLING)
        (folder / "out").mkdir()
        written[family] = write(trained, folder / "out", request_)
    with warm_interpreter.used():
        proofs = verify([one.export for one in written.values()])
    return {name: (one, proof) for (name, one), proof in zip(written.items(), proofs, strict=True)}


@pytest.mark.parametrize("family", VIDEO)
def test_an_export_is_proved_with_videos(exported, family):
    written, proof = exported[family]
    assert proof.problems == []
    chats = [sample.chat for sample in written.export.samples]
    assert any(part["type"] == "video" for chat in chats for part in chat[-1]["content"])
    (said,) = [said for name, said in written.rows if name == "videos"]
    if family in BY_TIME_ALONE:
        assert said.startswith("it chooses other frames than in training when it is served: choose them as")
        return
    assert said == "the processor chooses them as trained (num_frames=4)"
    saved = json.loads((written.export.folder / "processor_config.json").read_text())["video_processor"]
    assert saved["num_frames"] == 4
    assert saved["do_sample_frames"]


BY_TIME_ALONE = ("glm4v", "glm46v", "glm_ocr", "glm4v_moe")
"""Families whose rule knows `fps`, but no number of frames."""
SETTINGS = [
    VideoSampling(fps=1),
    VideoSampling(num_frames=8),
    VideoSampling(fps=2, max_frames=16),
    VideoSampling(fps=1, max_pixels_per_frame=32 * 32 * 6),
    VideoSampling(num_frames=8, max_pixels=8 * 32 * 32 * 6),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("family", VIDEO)
def test_what_is_served_is_what_was_trained_or_a_line_says_so(processor_of, family, sampling):
    processor = processor_of(family)
    videos = processor.video_processor
    choose = ProcessorChoice(processor_of(family).video_processor)
    said = serve_as_trained(processor, sampling)
    frames = torch.zeros(200, 3, 96, 128, dtype=torch.uint8)
    metadata = VideoMetadata(200, fps=20.0, width=128, height=96, duration=10.0)
    if said.startswith("the processor chooses them as trained"):
        made = videos([frames], video_metadata=[metadata], return_metadata=True, return_tensors="pt")
        indices = [int(place) for place in made["video_metadata"][0].frames_indices]
        assert indices == choose(VideoMetadata(200, fps=20.0, duration=10.0), sampling)
    else:
        assert "than in training when it is served: choose them as trained (" in said


def test_settings_come_back_from_a_checkpoint():
    for sampling in SETTINGS:
        assert trained_sampling({"data.video": str(sampling)}) == sampling
    assert trained_sampling({}) == VideoSampling()
