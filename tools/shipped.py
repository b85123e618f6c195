"""How the untrained base of the model inside the package is made.

`python -m tools.shipped DIR` writes the base: a LLaVA of 2.35 million random weights.
Pretrained on the drawn data it becomes `drawn-vlm`, which demos and tests adapt as users adapt theirs.
"""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from lightning_vlm.data.conversation import Box, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError

IMAGE_SIZE, PATCH, CONTEXT, VOCABULARY = 64, 16, 512, 1000
PAD, START, END, IMAGE = "<pad>", "<|im_start|>", "<|im_end|>", "<image>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def create(directory: Path, seed: int = 0) -> Path:
    """Save the untrained base of the shipped model: weights, configuration, tokenizer, processor, template.

    It is a real LLaVA: a SigLIP tower makes 16 image tokens of 64×64 pixels, a Llama text model has tied
    embeddings and a context of 512 tokens; `AutoModelForImageTextToText` and `AutoProcessor` load it. The
    tokenizer is learned from the text of the drawn data; bytes cover everything else. LLaVA reads the
    tower's last layer before its final norm, so the two parameters of `vision_tower.post_layernorm` never
    learn.

    Args:
        directory: Where to save it; made if missing.
        seed: Chooses the random weights.
    Returns:
        The directory.
    """
    tokenizer = _tokenizer()
    ids = tokenizer.get_vocab()
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=3,
            num_attention_heads=5,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=432,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids[END],
            pad_token_id=ids[PAD],
        ),
        image_token_index=ids[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=ids[END], pad_token_id=ids[PAD])
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return Path(directory)


@functools.cache
def _learned() -> str:
    """Byte-level BPE, as JSON. The drawn text comes in lower case too: other spellings stay short."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_drawn_text(), trainer)
    return tokenizer.to_str()


def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_learned()),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, IMAGE],
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        box_codec="thousandths",  # as Box.__str__ writes them
    )


def _drawn_text() -> Iterator[str]:
    source = Drawn("train", size=4_000)
    for conversation in source:
        for message in conversation.messages:
            words = "".join(
                part.text if isinstance(part, Text) else str(part)
                for part in message.parts
                if isinstance(part, Text | Box)
            )
            yield f"{message.role}\n"
            yield words
            yield words.lower()


def main(arguments: list[str]) -> None:
    """Write the base into the one directory named.

    Raises:
        UserError: Not exactly one argument.
    """
    if len(arguments) != 1:
        raise UserError("usage: python -m tools.shipped DIR")
    print(f"wrote {create(Path(arguments[0]))}")


if __name__ == "__main__":
    main(sys.argv[1:])
