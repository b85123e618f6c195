"""How the small model in the package becomes one that takes videos.

`python -m tools.shipped_video DIR` writes a LLaVA-OneVision with the weights of `drawn-vlm`. It makes 4
tokens of each frame, and knows nothing of motion yet; `configs/examples/video.yaml` trains it on
drawn videos.
"""

import sys
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from lightning_vlm.models.shipped import SHIPPED
from tools.shipped import CHAT_TEMPLATE, IMAGE_SIZE, PATCH

VIDEO = "<video>"
_FRAMES = 8


def create(directory: Path) -> Path:
    """Save a model for videos: weights of the shipped model, and its tokens with one more for videos.

    Args:
        directory: Where to save it; made if missing.
    Returns:
        The directory.
    """
    source = str(SHIPPED["drawn-vlm"])
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [VIDEO]})
    video_id = tokenizer.get_vocab()[VIDEO]
    shipped = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    shipped.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaOnevisionConfig(
        vision_config=shipped.config.vision_config,
        text_config=shipped.config.text_config,
        image_token_index=shipped.config.image_token_id,
        video_token_index=video_id,
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaOnevisionForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(shipped.state_dict(), strict=False)
    assert missing == ["model.image_newline"], missing
    assert not unexpected, unexpected
    model.generation_config = GenerationConfig.from_pretrained(source)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]], size=size
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size, num_frames=_FRAMES),
        num_image_tokens=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_with_videos(CHAT_TEMPLATE),
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return Path(directory)


def _with_videos(template: str) -> str:
    """A chat template with a place for videos beside the one for pictures."""
    picture = "{% if part['type'] == 'image' %}{{ '<image>' }}"
    assert picture in template
    return template.replace(picture, picture + "{% elif part['type'] == 'video' %}{{ '<video>' }}")


if __name__ == "__main__":
    print(create(Path(sys.argv[1])))
