"""Tiny models must be what they stand for: everything that users do with published ones works."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from lightning_vlm.data.render.templates import chat_template
from lightning_vlm.errors import UserError
from tests.support import tiny
from tests.support.rendering import in_lists

FAMILIES = sorted(tiny.FAMILIES)
Folder = Callable[[str], Path]


def user(words: str) -> dict:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}


def assistant(words: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": words}]}


def as_text(turn: dict) -> dict:
    return {**turn, "content": turn["content"][0]["text"]} if turn["role"] == "assistant" else turn


def load_processor(folder: Path) -> ProcessorMixin:
    """With a ready template where the family has none."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.chat_template or chat_template("plain", processor)
    return processor


def labels(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """All tokens that the head knows: Mllama's doesn't know that of a picture."""
    return ids.where(ids < model.get_output_embeddings().out_features, -100)


def batch(folder: Path, sizes: list[tuple[int, int]], prompt: bool = False) -> dict[str, torch.Tensor]:
    """One chat for each image size, each longer than the last, padded together."""
    processor = load_processor(folder)
    texts, images = [], []
    for number, size in enumerate(sizes):
        question, answer = user("What is this? " * (number + 1)), assistant("A red circle.")
        chat = [question] if prompt else [question, answer]
        texts.append(processor.apply_chat_template(chat, add_generation_prompt=prompt))
        images.append([Image.new("RGB", size, (40 * number, 80, 120))])
    inputs = processor(images=in_lists(processor, images), text=texts, padding=True, return_tensors="pt")
    inputs.pop("labels", None)  # PaliGemma's processor makes some
    # Llama 4's makes pixels in bfloat16.
    return {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_is_small_and_fast_and_the_seed_decides(family: str, tmp_path: Path) -> None:
    start = time.process_time()
    folder = tiny.build(family, tmp_path / "a", seed=1)
    assert time.process_time() - start < 5  # about 0.3 s alone
    first = AutoModelForImageTextToText.from_pretrained(folder)
    assert 100_000 < first.num_parameters() < 500_000
    again = AutoModelForImageTextToText.from_pretrained(tiny.build(family, tmp_path / "b", seed=1))
    other = AutoModelForImageTextToText.from_pretrained(tiny.build(family, tmp_path / "c", seed=2))
    weights, same, different = (list(m.state_dict().values()) for m in (first, again, other))
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, different, strict=True))


_EARLY = (18, r"\.layers\.2\.|post_layernorm")  # features leave the tower one layer early
DEAD = {
    "ernie4_5_vl_moe": (2, "e_score_correction_bias"),
    "deepseek_ocr2": (1, "query_1024_resolution"),  # for larger pictures
    "llava": _EARLY,
    "llava_next": _EARLY,
    "llava_onevision": (2, "post_layernorm"),
    "aya_vision": (2, "post_layernorm"),
    "granite4_vision": (2, "post_layernorm"),
    "hunyuan_vl": (1, "image_sep"),
    "gemma3n": (28, r"audio_tower|embed_audio"),
    "gemma4": (30, r"audio_tower|embed_audio"),
    "vipllava": _EARLY,
    "llava_next_video": _EARLY,
    "video_llava": (18 + 55, r"\.layers\.2\.|post_layernorm|video_tower"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_from_batches_of_different_sizes(family: str, tiny_folder: Folder) -> None:
    folder = tiny_folder(family)
    model = AutoModelForImageTextToText.from_pretrained(folder).train()
    many = [(200, 100), (56, 56), (60, 90)]
    if family == "perception_lm":
        many = [(64, 64)] * 3  # its processor takes pictures of as many tiles only, other than our batches
    for sizes in ([(30, 50)], many):
        inputs = batch(folder, sizes)
        model.zero_grad()
        model(**inputs, labels=labels(model, inputs["input_ids"])).loss.backward()
        dead = {name for name, weight in model.named_parameters() if weight.grad is None}
        count, pattern = DEAD.get(family, (0, ""))
        assert (len(dead), [name for name in dead if not re.search(pattern, name)]) == (count, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_generates_and_reloads(family: str, tiny_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_folder(family)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_processor(folder)
    processor.tokenizer.padding_side = "left"
    inputs = batch(folder, [(56, 56)], prompt=True)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    ends = model.generation_config.eos_token_id
    assert processor.tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])

    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_reach_the_words(family: str, tiny_folder: Folder) -> None:
    folder = tiny_folder(family)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = batch(folder, [(56, 56)])
    with torch.no_grad():
        before = model(**inputs).logits[:, -1]
        name = "pixel_values_images" if family == "video_llava" else "pixel_values"
        inputs[name] = -inputs[name]
        assert not torch.allclose(before, model(**inputs).logits[:, -1])


_QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n"
    "<|im_start|>assistant\nTwo.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
)
_IDEFICS = (
    "User:<image>How many?<end_of_utterance>\nAssistant: Two.<end_of_utterance>\n"
    "User: Sure?<end_of_utterance>\nAssistant: Yes.<end_of_utterance>\n"
)
_ANSWERED = "How many?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
_AGAIN = "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
_ASKED = "<|im_start|>user\n"
_VICUNA = "USER: <image>\nHow many? ASSISTANT: Two. USER: Sure? ASSISTANT: Yes. "
_COHERE = (
    "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>How many?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>Two.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Sure?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>Yes.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
)
_GEMMA4 = (
    "<bos><|turn>user\n\n\n<|image|>\n\nHow many?<turn|>\n<|turn>model\nTwo.<turn|>\n"
    "<|turn>user\nSure?<turn|>\n<|turn>model\nYes.<turn|>\n"
)
_GRANITE = (
    "<|start_of_role|>user<|end_of_role|><image>How many?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Two.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Sure?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Yes.<|end_of_text|>\n"
)
_PERCEPTION = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "You are a helpful language and vision assistant.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<|image|>How many?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
)
CHATS = {
    "perception_lm": _PERCEPTION,
    "fast_vlm": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nHow many?<|im_end|>\n<|im_start|>assistant\n\nTwo.<|im_end|>\n"
        "<|im_start|>user\n\nSure?<|im_end|>\n<|im_start|>assistant\n\nYes.<|im_end|>\n"
    ),
    "gemma3n": (
        "<bos><start_of_turn>user\n<image_soft_token>How many?<end_of_turn>\n<start_of_turn>model\nTwo."
        "<end_of_turn>\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
    ),
    "gemma4": _GEMMA4,
    "gemma4_31b": _GEMMA4,
    "idefics2": _IDEFICS,
    "granite4_vision": _GRANITE,
    "granite_docling": _GRANITE,
    "vipllava": "###Human: <image>\nHow many?###Assistant: Two.###Human: Sure?###Assistant: Yes.",
    "llava_next_video": _VICUNA,
    "video_llava": _VICUNA,
    "aya_vision": _COHERE,
    "cohere2_vision": _COHERE.replace("<image>", "<|IMG_PATCH|>"),
    "llava": "USER: <image>\nHow many? ASSISTANT: Two. USER: Sure? ASSISTANT: Yes. ",
    "llava_next": "[INST] <image>\nHow many? [/INST] Two.</s> [INST] Sure? [/INST] Yes.</s> ",
    "llava_onevision": (
        "<|im_start|>user <image>\nHow many?<|im_end|><|im_start|>assistant \nTwo.<|im_end|>"
        "<|im_start|>user \nSure?<|im_end|><|im_start|>assistant \nYes.<|im_end|>"
    ),
    "smolvlm": "<|im_start|>" + _IDEFICS,
    "idefics3": "<|begin_of_text|>" + _IDEFICS,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN.partition("<|im_end|>\n")[2],
    "qwen3_vl_moe": _QWEN.partition("<|im_end|>\n")[2],
    "qwen3_5_moe": _QWEN.partition("<|im_end|>\n")[2].replace("Yes.", "<think>\n\n</think>\n\nYes."),
    "ernie4_5_vl_moe": (
        "<s>User: Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>How many?\nAssistant: Two.</s>"
        "User: Sure?\nAssistant: Yes.</s>"
    ),
    "gemma3": (
        "<bos><start_of_turn>user\n<start_of_image>How many?<end_of_turn>\n<start_of_turn>model\nTwo."
        "<end_of_turn>\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
    ),
    "internvl": (
        "<|im_start|>user\n<IMG_CONTEXT>\nHow many?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    ),
    "internvl3_5": f"{_ASKED}<IMG_CONTEXT>\n{_ANSWERED}{_AGAIN}",
    "lfm2_vl": f"<|startoftext|>{_ASKED}<image>{_ANSWERED}{_AGAIN}",
    "lfm3_vl": (f"<|startoftext|>{_ASKED}<|vision_start|><|image_pad|><|vision_end|>{_ANSWERED}{_AGAIN}"),
    "ovis2": (
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{_ASKED}<image>\n{_ANSWERED}{_AGAIN}"
    ),
    "deepseek_vl": (
        "You are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.\n\n"
        "User: <image_placeholder>How many?\n\nAssistant: Two.<｜end▁of▁sentence｜>"
        "User: Sure?\n\nAssistant: Yes."
    ),
    "molmo2": (
        f"<|image|>{_ASKED}How many?<|im_end|>\n <|im_start|>assistant\nTwo.<|im_end|>\n"
        f"{_ASKED}Sure?<|im_end|>\n <|im_start|>assistant\nYes."
    ),
    "lighton_ocr": f"<|im_start|>system<|im_end|>\n{_ASKED}<|image_pad|>{_ANSWERED}{_AGAIN}",
    "mistral3": (
        "<s>[SYSTEM_PROMPT]You are a helpful assistant.[/SYSTEM_PROMPT]"
        "[INST][IMG]How many?[/INST]Two.</s>[INST]Sure?[/INST]Yes.</s>"
    ),
    "pixtral": "<s>[INST][IMG]How many?[/INST]Two.</s>[INST]Sure?[/INST]Yes.</s>",
    "mllama": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>How many?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    ),
    "qwen3_5": _QWEN.partition("<|im_end|>\n")[2].replace("Yes.", "<think>\n\n</think>\n\nYes."),
    "minicpmv4_6": f"{_ASKED}<|image_pad|>\n{_ANSWERED}{_AGAIN}".replace(
        "Yes.", "<think>\n\n</think>\n\nYes."
    ),
}
_GLM = "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>How many?<|assistant|>\n"
CHATS["glm4v"] = _GLM + "Two.<|user|>\nSure?<|assistant|>\nYes."
CHATS["glm46v"] = _GLM + "<think></think>\nTwo.<|user|>\nSure?<|assistant|>\n<think></think>\nYes."
CHATS["glm_ocr"] = CHATS["glm4v_moe"] = CHATS["glm46v"]
CHATS["paddleocr_vl"] = (
    "<|begin_of_sentence|>User: <|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>How many?\n"
    "Assistant:\nTwo.</s>User: Sure?\nAssistant:\nYes.</s>"
)
CHATS["hunyuan_vl"] = (
    "<｜hy_begin▁of▁sentence｜><｜hy_place▁holder▁no▁100｜><｜hy_place▁holder▁no▁102｜><｜hy_place▁holder▁no▁101｜>"
    "How many?<｜hy_User｜>Two.<｜hy_Assistant｜>Sure?<｜hy_User｜>Yes.<｜hy_Assistant｜>"
)
CHATS["video_llama_3"] = (
    "<|im_start|>user\n<|image_pad|>\nHow many?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
)
CHATS["exaone4_5"] = (
    "<|user|>\n<vision><|image_pad|></vision>How many?<|endofturn|>\n<|assistant|>\nTwo.<|endofturn|>\n"
    "<|user|>\nSure?<|endofturn|>\n<|assistant|>\nYes.<|endofturn|>\n"
)
CHATS["llama4"] = (
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\n<|image|>How many?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nTwo.<|eot|>"
    "<|header_start|>user<|header_end|>\n\nSure?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nYes.<|eot|>"
)
_CHATML = "<|im_start|>assistant\n"
_COHERE_ASKS = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>"
_GRANITE_ASKS = "<|start_of_role|>assistant<|end_of_role|>"
PROMPTS = {
    "perception_lm": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "fast_vlm": "<|im_start|>assistant\n",
    "gemma3n": "<start_of_turn>model\n",
    "gemma4": "<|turn>model\n",
    "gemma4_31b": "<|turn>model\n",
    "idefics2": "Assistant:",
    "granite4_vision": _GRANITE_ASKS,
    "granite_docling": _GRANITE_ASKS,
    "vipllava": "###Assistant:",
    "llava_next_video": "ASSISTANT:",
    "video_llava": "ASSISTANT:",
    "aya_vision": _COHERE_ASKS,
    "cohere2_vision": _COHERE_ASKS,
    "llava": "ASSISTANT:",
    "llava_next": " [/INST]",
    "llava_onevision": _CHATML,
    "smolvlm": "Assistant:",
    "idefics3": "Assistant:",
    "qwen2_vl": _CHATML,
    "qwen2_5_vl": _CHATML,
    "qwen3_vl": _CHATML,
    "qwen3_vl_moe": _CHATML,
    "qwen3_5_moe": _CHATML + "<think>\n\n</think>\n\n",
    "ernie4_5_vl_moe": "Assistant: ",
    "gemma3": "<start_of_turn>model\n",
    **dict.fromkeys(("internvl", "internvl3_5", "lfm2_vl", "lfm3_vl", "ovis2", "lighton_ocr"), _CHATML),
    "mistral3": "[/INST]",
    "pixtral": "[/INST]",
    "mllama": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    **dict.fromkeys(("glm4v", "glm46v", "glm_ocr", "glm4v_moe", "exaone4_5"), "<|assistant|>\n"),
    "paddleocr_vl": "Assistant:\n",
    "hunyuan_vl": "Sure?<｜hy_User｜>",
    "video_llama_3": _CHATML,
    "llama4": "<|header_start|>assistant<|header_end|>\n\n",
    "deepseek_vl": "Assistant:",
    "molmo2": _CHATML,
    "qwen3_5": _CHATML + "<think>\n\n</think>\n\n",
    "minicpmv4_6": _CHATML + "<think>\n\n</think>\n\n",
}
MARKED = ("llava", "llava_onevision", "llava_next_video", "video_llava")  # with {% generation %}


@pytest.mark.parametrize("family", FAMILIES)
def test_template_has_the_published_shape(family: str, tiny_folder: Folder) -> None:
    processor = AutoProcessor.from_pretrained(tiny_folder(family))
    if family not in CHATS:
        assert processor.chat_template is None
        return
    chat = [
        user("How many?"),
        assistant("Two."),
        {**user(""), "content": [{"type": "text", "text": "Sure?"}]},
    ]
    whole = [*chat, assistant("Yes.")]
    if family == "glm4v":  # it writes the content of answers as it is
        chat, whole = ([as_text(turn) for turn in turns] for turns in (chat, whole))
    assert processor.apply_chat_template(whole) == CHATS[family]
    asked = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert asked.endswith(PROMPTS[family])
    assert CHATS[family].startswith(asked) == (family not in ("llava_onevision", "molmo2"))
    assert ("generation" in processor.chat_template.replace("add_generation", "")) == (family in MARKED)


_BRIEF = [{"type": "text", "text": "Be brief. "}]
_QWEN_ASKED = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n"
_QWEN_BRIEF = "<|im_start|>system\nBe brief. <|im_end|>\n"
SYSTEMS = {
    "smolvlm": "<|im_start|>System: Be brief. <end_of_utterance>\nUser:<image>How many?<end_of_utterance>\n",
    "idefics3": (
        "<|begin_of_text|>System: Be brief. <end_of_utterance>\nUser:<image>How many?<end_of_utterance>\n"
    ),
    "qwen2_vl": _QWEN_BRIEF + _QWEN_ASKED,
    "qwen2_5_vl": _QWEN_BRIEF + _QWEN_ASKED,
    "qwen3_vl": _QWEN_BRIEF + _QWEN_ASKED,
    "gemma3": "<bos><start_of_turn>user\nBe brief. \n\n<start_of_image>How many?<end_of_turn>\n",
    "qwen3_5": _QWEN_BRIEF.replace(" <", "<") + _QWEN_ASKED,
}


@pytest.mark.parametrize("family", SYSTEMS)
def test_system_turns_as_published(family: str, tiny_folder: Folder) -> None:
    processor = AutoProcessor.from_pretrained(tiny_folder(family))
    chat = [{"role": "system", "content": _BRIEF}, user("How many?")]
    assert processor.apply_chat_template(chat) == SYSTEMS[family]


def test_what_published_templates_leave_out(tiny_folder: Folder) -> None:
    processor = AutoProcessor.from_pretrained(tiny_folder("qwen3_vl"))
    chat = [{"role": "system", "content": [{"type": "image"}, *_BRIEF]}, user("How many?")]
    assert processor.apply_chat_template(chat) == SYSTEMS["qwen3_vl"]

    processor = AutoProcessor.from_pretrained(tiny_folder("pixtral"))
    text, parts = ({"role": "system", "content": content} for content in ("Be brief. ", _BRIEF))
    asked, answered = [user("How many?")], [user("How many?"), assistant("Two.")]
    assert processor.apply_chat_template([text, *asked]) == "<s>[INST]Be brief. \n\n[IMG]How many?[/INST]"
    for system in (text, parts):
        assert processor.apply_chat_template([system, *answered]) == "<s>[INST][IMG]How many?[/INST]Two.</s>"
    with pytest.raises(TypeError, match="can only concatenate"):
        processor.apply_chat_template([parts, *asked])


def test_llava_marks_exactly_the_answers(tiny_folder: Folder) -> None:
    processor = AutoProcessor.from_pretrained(tiny_folder("llava"))
    out = processor.tokenizer.apply_chat_template(
        [user("How many?"), assistant("Two.")],
        chat_template=processor.chat_template,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    answer = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert processor.tokenizer.decode(answer).strip() == "Two."


def test_unknown_family_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'qwen2_5'.*qwen2_5_vl"):
        tiny.build("qwen2_5", tmp_path)
