"""What `gpu.py` trains: published shapes with random weights, on questions about pictures of noise."""

import math
import random
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import torch

from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from tests.support.tiny import FAMILIES
from tests.support.tiny.family import make_tokenizer

# isort: split
from transformers import (  # after ours, which mends a CPU-only torch
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
)

SHAPES = ("qwen2_5_vl", "qwen3_vl")
"""Qwen2.5-VL of 3 billion parameters, and Qwen3-VL of 4 billion."""

EVEN = 700
"""Tokens of each sample of even length."""
SPREAD = (256, 4096)
"""Tokens of the shortest and of the longest sample of uneven length; spread log-uniformly."""
SIDE = 448
"""Pixels of a picture's side."""


class Pictures(Conversations):
    """Questions about pictures of noise, of one length or of very different ones.

    Args:
        folder: Where pictures are.
        size: How many samples.
        uneven: Whether lengths are spread over `SPREAD`; a sample then has a picture for each 1,024 tokens.
        side: Pixels of a picture's side.
    """

    def __init__(self, folder: Path, size: int, uneven: bool, side: int = SIDE) -> None:
        chance = random.Random(0)
        shortest, longest = SPREAD
        self._lengths = [EVEN] * size
        if uneven:
            spread = math.log(longest / shortest)
            self._lengths = [int(shortest * math.exp(spread * chance.random())) for _ in range(size)]
        self._tokens_a_picture = (side // 28) ** 2
        self._paths = [folder / f"{number}.jpg" for number in range(8)]
        for number, path in enumerate(self._paths):
            noise = numpy.random.default_rng(number).integers(0, 255, (side, side, 3), "uint8")
            PIL.Image.fromarray(noise).save(path)

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]
        length = self._lengths[index]
        pictures = 2 if length == EVEN else max(1, length // 1024)
        paths = [self._paths[(index + offset) % len(self._paths)] for offset in range(pictures)]
        images = [Image(path, root=path.parent) for path in paths]
        words = max(8, length - pictures * self._tokens_a_picture - 30)
        answer = " ".join(["There are two green triangles."] * (words // 7))  # each has 7 tokens
        turns = (Message("user", (*images, Text("What is it?"))), Message("assistant", (Text(answer),)))
        return Conversation(turns, source=f"pictures:{index}")


def save_model(folder: Path, shape: str, small: bool, device: str) -> None:
    """Write a model of random weights, and the processor of the tiny family for pictures of full size.

    Args:
        folder: Where to; must be empty, or older weights would be read.
        shape: One of `SHAPES`.
        small: Two narrow layers, to try the script on a CPU.
        device: Where the weights are drawn.
    """
    row = FAMILIES[shape]
    tokenizer = make_tokenizer(row)
    tokenizer.model_max_length = 32768
    processor: Any = row.processor(tokenizer, row.template)
    patch = 14 if shape == "qwen2_5_vl" else 16
    processor.image_processor = Qwen2VLImageProcessor(
        patch_size=patch, min_pixels=(4 * patch) ** 2, max_pixels=1280 * (2 * patch) ** 2
    )
    processor.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    text, vision = _qwen2_5_vl(small) if shape == "qwen2_5_vl" else _qwen3_vl(small)
    text |= {
        "vocab_size": 1000 if small else 151936,
        "max_position_embeddings": 128000,
        "pad_token_id": ids[row.pad],
        "eos_token_id": ids[row.eos],
        "bos_token_id": None,
    }
    make: Any = Qwen2_5_VLConfig if shape == "qwen2_5_vl" else Qwen3VLConfig
    config = make(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def _qwen2_5_vl(small: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    if small:
        rope["mrope_section"] = [2, 3, 3]
        text |= {"hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512}
        vision |= {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 256}
        vision["fullatt_block_indexes"] = [1]
    return text, vision


def _qwen3_vl(small: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    text = {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "num_heads": 16,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    if small:
        rope["mrope_section"] = [4, 2, 2]
        text |= {"hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512, "head_dim": 16}
        text |= {"num_attention_heads": 16, "num_key_value_heads": 4}
        vision |= {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 256}
        vision |= {"num_heads": 4, "deepstack_visual_indexes": [0]}
    return text, vision
