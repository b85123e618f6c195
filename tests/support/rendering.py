"""What the tests of rendering share: what families write, and what a processor makes by itself."""

import torch

from lightning_vlm.data.conversation import Image, Text, Video
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.media import FLAT
from lightning_vlm.kinds import Kind
from tests.support.tiny import FAMILIES

END = {  # of the families' own templates; ready ones write the tokenizer's end token
    "llava": "",
    "llava_next": "</s>",
    "llava_onevision": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "qwen2_vl": "<|im_end|>",
    "qwen2_5_vl": "<|im_end|>",
    "qwen3_vl": "<|im_end|>",
    "qwen3_vl_moe": "<|im_end|>",
    "qwen3_5_moe": "<|im_end|>",
    "ernie4_5_vl_moe": "</s>",
    "gemma3": "<end_of_turn>",
    "internvl": "<|im_end|>",
    "internvl3_5": "<|im_end|>",
    "lfm2_vl": "<|im_end|>",
    "lfm3_vl": "<|im_end|>",
    "ovis2": "<|im_end|>",
    "lighton_ocr": "<|im_end|>",
    "deepseek_vl": "<｜end▁of▁sentence｜>",
    "molmo2": "<|im_end|>",
    "minicpmv4_6": "<|im_end|>",
    "mistral3": "</s>",
    "pixtral": "</s>",
    "mllama": "<|eot_id|>",
    "qwen3_5": "<|im_end|>",
    "gemma4": "<turn|>",
    "gemma4_31b": "<turn|>",
    "idefics2": "<end_of_utterance>",
    "granite4_vision": "<|end_of_text|>",
    "granite_docling": "<|end_of_text|>",
    "perception_lm": "<|eot_id|>",
    "fast_vlm": "<|im_end|>",
    "gemma3n": "<end_of_turn>",
    "vipllava": "",
    "llava_next_video": "",
    "video_llava": "",
    "aya_vision": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "cohere2_vision": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "paddleocr_vl": "</s>",
    "hunyuan_vl": "<｜hy_Assistant｜>",
    "video_llama_3": "<|im_end|>",
    "exaone4_5": "<|endofturn|>",
    "glm4v": "<|user|>",
    "glm46v": "<|user|>",
    "glm4v_moe": "<|user|>",
    "glm_ocr": "<|user|>",
    "llama4": "<|eot|>",
    "shipped": "<|im_end|>",
}
GAPS = (
    "llava",
    "llava_next",
    "smolvlm",
    "idefics3",
    "idefics2",
    "vipllava",
    "llava_next_video",
    "video_llava",
    "deepseek_vl",
)
"""Families whose own templates write a space before an answer."""
THOUGHTS = dict.fromkeys(("glm46v", "glm_ocr", "glm4v_moe"), "<think></think>\n")
"""What own templates write before an answer without reasoning, which the prompt leaves to the model."""
ENDED_BY_QUESTIONS = ("glm4v", "glm46v", "glm_ocr", "glm4v_moe")
"""Families whose own templates end an answer by the next question."""
ADDED_ENDS = (*ENDED_BY_QUESTIONS, "deepseek_vl", "molmo2")
"""Families whose own templates don't end the last answer of a chat: an end is added to it."""
NO_EMPTY_ANSWERS = ("glm46v", "glm_ocr", "glm4v_moe")
"""Families whose own templates write less around an empty answer, so that it can't be masked."""
NO_EMPTY_QUESTIONS = ("minicpmv4_6",)
"""Families whose own templates strip the line behind a picture with an empty text, which is refused."""
NO_EMPTY_LAST_ANSWERS = ("deepseek_vl",)
"""Families whose own templates do so with the last answer of a chat."""


def gap_of(renderer, family, template):
    """What the template writes before each answer that the model must write: mostly white space."""
    if renderer.habits.strips:
        return "\n"  # of ready templates; the processor takes it from the end of prompts
    if template is None and family in THOUGHTS:
        return THOUGHTS[family]
    if template is None and family == "fast_vlm":
        return "\n"
    return " " if template is None and family in GAPS else ""


ANSWERED = (Kind.RESPONSE, Kind.BOX, Kind.ENTITY)


def in_lists(processor, images):
    """Pictures of several chats, a list for each, in the lists that a processor takes."""
    if type(processor).__name__ not in FLAT:
        return images
    return [picture for pictures in images for picture in pictures]


def ready_template(family):
    """The name of a ready template for a family that has none of its own."""
    return "plain" if family in FAMILIES and FAMILIES[family].template is None else None


JOINS_SPACE = ("ernie4_5_vl_moe",)
"""Families whose prompts end with a space that the tokenizer joins to the first word of an answer where the
processor is given both at once. Answers are learned as they are asked for: without it."""


def supervised(renderer, example):
    """The text of each unbroken stretch of supervised tokens."""
    stretches, before = [], False
    for token, kind in zip(example.input_ids.tolist(), example.kinds.tolist(), strict=True):
        if kind in ANSWERED:
            if not before:
                stretches.append([])
            stretches[-1].append(token)
        before = kind in ANSWERED
    return [renderer.tokenizer.decode(tokens, clean_up_tokenization_spaces=False) for tokens in stretches]


STRINGS = {"glm4v": ("system", "assistant", "tool"), "perception_lm": ("system",)}
"""Family -> roles whose contents its template takes as strings, though it takes parts of others."""


def _is_string(role, template):
    return role in next((STRINGS[name] for name in STRINGS if FAMILIES[name].template == template), ())


def processor_inputs(renderer, conversation, **options):
    """The processor's own inputs for a conversation, with neighbouring texts joined."""
    turns = []
    for message in conversation.messages:
        content = []
        for part in message.parts:
            if isinstance(part, Image):
                content.append({"type": "image", "image": load_image(part, "", "")})
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += part.text if isinstance(part, Text) else str(part)
            else:
                content.append({"type": "text", "text": part.text if isinstance(part, Text) else str(part)})
        content = content or [{"type": "text", "text": ""}]
        if _is_string(message.role, renderer.processor.chat_template):
            content = content[0]["text"]  # else it would be written as Python shows a list
        turns.append({"role": message.role, "content": content})
    if type(renderer.processor).__name__ in FLAT:  # which its own apply_chat_template doesn't heed
        pictures = [part["image"] for turn in turns for part in turn["content"] if part["type"] == "image"]
        text = renderer.processor.apply_chat_template(turns, tokenize=False, **options)
        tokens = {"add_special_tokens": not text.startswith(renderer.tokenizer.bos_token)}
        return dict(renderer.processor(images=pictures, text=[text], return_tensors="pt", **tokens))
    batch = renderer.processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", **options
    )
    if turns[-1]["role"] == "assistant" and not options.get("add_generation_prompt"):
        batch = with_added_end(batch, renderer.processor)
    if "qformer_input_ids" in batch:  # what is read in a picture must not depend on answers
        roles = [turn["role"] for turn in turns]
        before = turns[: roles.index("assistant")] if "assistant" in roles else turns
        template = renderer.processor.apply_chat_template
        question = template(before, add_generation_prompt=True) if before else "Assistant:\n"
        asked = renderer.processor.qformer_tokenizer([question], return_tensors="pt")
        batch |= {f"qformer_{name}": asked[name] for name in ("input_ids", "attention_mask")}
    return {name: value for name, value in batch.items() if name != "labels"}


def own_inputs(renderer, conversation, last=True):
    """What the processor itself makes of a conversation and the frames that the renderer looks at.

    Args:
        last: Whether the last turn is there, or the prompt for it.
    """
    turns, metadata = [], []
    for message in conversation.messages if last else conversation.messages[:-1]:
        content = []
        for part in message.parts:
            if isinstance(part, Image):
                content.append({"type": "image", "image": load_image(part, "", "")})
            elif isinstance(part, Video):
                found = renderer.open_video(part, "", "")
                content.append({"type": "video", "video": found.frames})
                metadata.append(found.metadata)
            else:
                content.append({"type": "text", "text": part.text})
        if _is_string(message.role, renderer.processor.chat_template):
            content = content[0]["text"]
        turns.append({"role": message.role, "content": content})
    of_videos = {"video_metadata": metadata, "do_sample_frames": False} if metadata else {}
    batch = renderer.processor.apply_chat_template(
        turns,
        add_generation_prompt=not last,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=of_videos,
    )
    if last:
        batch = with_added_end(batch, renderer.processor)
    return {name: value for name, value in batch.items() if name != "labels"}


def with_added_end(batch, processor):
    """The same with the token that ends an answer, where a template writes it before a question only."""
    ends = {FAMILIES[family].template: END[family] for family in ADDED_ENDS}
    if processor.chat_template not in ends:
        return batch
    end = processor.tokenizer.convert_tokens_to_ids(ends[processor.chat_template])
    added = {"input_ids": end, "attention_mask": 1, "mm_token_type_ids": 0}
    return {
        name: torch.nn.functional.pad(value, (0, 1), value=added[name]) if name in added else value
        for name, value in batch.items()
    }


def assert_alike(renderer, example, batch):
    """Compare the texts, where the tokens of a space and a word are others."""
    texts = [renderer.tokenizer.decode(ids) for ids in (example.input_ids, batch["input_ids"][0])]
    assert texts[0] == texts[1]
    assert {"input_ids", *example.inputs} == batch.keys()


def assert_like(example, batch):
    """Compare the ids, and all else that the model gets."""
    assert {"input_ids", *example.inputs} == batch.keys()
    assert example.input_ids.tolist() == batch["input_ids"][0].tolist()
    for name, value in example.inputs.items():
        theirs = batch[name]
        if value.ndim == 5 and value.shape[1] == 1 and name.startswith("pixel_values"):
            theirs = theirs.flatten(0, 1)[:, None]  # Perception LM's tiles, each as a picture of one
        assert torch.equal(value, theirs), name
