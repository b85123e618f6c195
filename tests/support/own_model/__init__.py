"""A vision-language model of somebody's own, with its own Python files; built and saved for tests.

Its parts have names that transformers doesn't know, its forward halves the logits, and its processor doesn't
say what stands for a picture.
"""

import shutil
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, GenerationConfig

from tests.support.own_model.modeling_peek import PeekConfig, PeekForImageTextToText
from tests.support.own_model.processing_peek import PeekProcessor
from tests.support.tiny.family import make_tokenizer
from tests.support.tiny.llava import LLAVA

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """Save a small one with random weights, as on the Hub: the files name its classes in `auto_map`."""
    row = LLAVA._replace(special=("<peek>",), named={})
    tokenizer = make_tokenizer(row)
    tokenizer.chat_template = None
    ids = tokenizer.get_vocab()
    PeekConfig.register_for_auto_class()
    PeekForImageTextToText.register_for_auto_class("AutoModelForImageTextToText")
    PeekProcessor.register_for_auto_class()
    config = PeekConfig(
        vocab_size=len(tokenizer),
        image_token_id=ids["<peek>"],
        pad_token_id=ids[row.pad],
        eos_token_id=ids[row.eos],
        bos_token_id=ids[row.bos],
    )
    torch.manual_seed(0)
    model = PeekForImageTextToText(config)
    model.generation_config = GenerationConfig(pad_token_id=ids[row.pad], eos_token_id=ids[row.eos])
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    PeekProcessor(images, tokenizer).save_pretrained(folder)
    for name in ("modeling_peek.py", "processing_peek.py"):
        shutil.copy(HERE / name, folder)
    return folder
