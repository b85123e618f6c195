"""The shape of LLaVA-1.5-7B as a folder without weights: what a plan needs, in a few hundred KB."""

from pathlib import Path

from transformers import AutoConfig, AutoProcessor

from tests.support import tiny


def llava_7b(folder: Path) -> Path:
    """Make the folder: sizes as published, the tiny tokenizer, pictures of 336 × 336 pixels (576 tokens)."""
    tiny.build("llava", folder)
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 4096, 11008, 32
    text.num_attention_heads = text.num_key_value_heads = 32
    text.head_dim, text.vocab_size, text.max_position_embeddings = 128, 32064, 4096
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 1024, 4096, 24
    vision.num_attention_heads, vision.image_size, vision.projection_dim = 16, 336, 768
    for part in (config, text, vision):
        part.dtype = "bfloat16"
    config.tie_word_embeddings = text.tie_word_embeddings = False
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    processor.tokenizer.model_max_length = 4096
    processor.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return folder
