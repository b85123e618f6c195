"""Which servers know a model, from their own lists of architectures, and how it is started there.

None of them is installed where this was written: a list says what a server names, not that it was tried.
"""

from collections.abc import Collection
from typing import NamedTuple

VLLM_SOURCE = (
    "vllm-project/vllm, `vllm/model_executor/models/registry.py` at commit 0002bff0b6cb (read 2026-11-28; "
    "newer versions may name more)"
)
LLAMA_SOURCE = (
    "ggml-org/llama.cpp, `conversion/__init__.py` at commit 00bdaa105cb0 and `conversion/llava.py` at commit "
    "32e9e0448790 (read 2026-11-28)"
)
OLLAMA_SOURCE = "ollama/ollama, `convert/convert.go` at commit fb30760996 of 2026-08-21"

_END = "ForConditionalGeneration"
_VLLM = [
    "AyaVision",
    "Blip2",
    "Cohere2Vision",
    "Ernie4_5_VLMoe",
    "Gemma3",
    "Gemma3n",
    "Glm4v",
    "Glm4vMoe",
    "HunYuanVL",
    "Idefics3",
    "InternVL",
    "Llama4",
    "Llava",
    "LlavaNext",
    "LlavaNextVideo",
    "LlavaOnevision",
    "Mistral3",
    "PaddleOCRVL",
    "PaliGemma",
    "Pixtral",
    "Qwen2VL",
    "Qwen2_5_VL",
    "Qwen3VL",
    "Qwen3VLMoe",
    "SmolVLM",
]
_VLLM_UNTIL = {"Mllama": "0.10.2"}
_LLAMA = [
    "Exaone4_5_",
    "Gemma3",
    "Gemma3n",
    "Gemma4",
    "Glm4v",
    "Glm4vMoe",
    "GlmOcr",
    "HunYuanVL",
    "Llama4",
    "MiniCPMV4_6",
    "Mistral3",
    "Qwen2VL",
    "Qwen2_5_VL",
    "Qwen3VL",
    "Qwen3VLMoe",
    "Qwen3_5",
    "Qwen3_5Moe",
]
"""Named for their text and their pictures both."""
_LLAMA_BY_TEXT = ("Idefics3", "SmolVLM", "Granite4Vision", "Lfm2Vl", "InternVL", "PaddleOCRVL")
"""Named in part: the rest is found by what `text_config` and `vision_config` say, which varies."""
_OLLAMA = [
    "Gemma3",
    "Gemma4",
    "GlmOcr",
    "Llama4",
    "Mistral3",
    "Mllama",
    "Qwen2_5_VL",
    "Qwen3VL",
    "Qwen3VLMoe",
    "Qwen3_5",
    "Qwen3_5Moe",
]
"""Imported with their pictures; of Gemma 3n it leaves the vision encoder out."""

YES, NO, UNKNOWN = "named", "not named", "unknown"


class Support(NamedTuple):
    """Whether a server knows an architecture.

    Args:
        state: `named`, `not named` or `unknown`.
        why: In words.
    """

    state: str
    why: str


def vllm(architecture: str) -> Support:
    """Whether vLLM's registry names an architecture.

    >>> vllm("Qwen2_5_VLForConditionalGeneration").state, vllm("MllamaForConditionalGeneration").state
    ('named', 'not named')
    >>> vllm("SomethingNewForConditionalGeneration").state
    'unknown'
    """
    name = architecture.removesuffix(_END)
    if name in _VLLM:
        return Support(YES, f"vLLM names {architecture}")
    if name in _VLLM_UNTIL:
        return Support(NO, f"vLLM had {architecture} until version {_VLLM_UNTIL[name]} only")
    return Support(
        UNKNOWN, f"that list doesn't name {architecture}; a newer vLLM, or its Transformers backend, may"
    )


def llama_cpp(architecture: str, tower: str = "") -> Support:
    """Whether llama.cpp's converter names an architecture, for its text and its pictures.

    Args:
        architecture: The model's.
        tower: The type of its vision encoder (`vision_config.model_type`).

    >>> llama_cpp("LlavaForConditionalGeneration", "pixtral").state
    'named'
    >>> llama_cpp("LlavaForConditionalGeneration", "clip_vision_model").state
    'not named'
    """
    name = architecture.removesuffix(_END)
    if name in _LLAMA or (name == "Llava" and tower == "pixtral"):
        return Support(YES, f"the converter names {architecture}")
    if name == "Llava":
        return Support(
            NO, f"the converter takes Llava's pictures with a Pixtral encoder only, not {tower or 'others'}"
        )
    if name in _LLAMA_BY_TEXT:
        return Support(
            UNKNOWN, f"the converter finds a part of {architecture} by the base's config, which varies"
        )
    return Support(NO, f"the converter doesn't name {architecture}")


def ollama(architecture: str, tower: str = "") -> Support:
    """Whether Ollama imports an architecture itself, or through llama.cpp's files.

    >>> ollama("Gemma3ForConditionalGeneration").state, ollama("Qwen2VLForConditionalGeneration").state
    ('named', 'unknown')
    """
    if architecture.removesuffix(_END) in _OLLAMA:
        return Support(YES, f"Ollama imports {architecture}")
    through = llama_cpp(architecture, tower)
    if through.state == NO:
        return Support(
            NO, f"Ollama doesn't import {architecture}, nor does llama.cpp's converter make a GGUF of it"
        )
    return Support(UNKNOWN, "Ollama gets it as GGUF files of llama.cpp only, and may not run them")


def imports_itself(architecture: str) -> bool:
    """Whether Ollama takes the folder as it is."""
    return architecture.removesuffix(_END) in _OLLAMA


def vllm_commands(base: str | None, rank: int | None, not_taken: Collection[str]) -> list[str]:
    """How vLLM is started, in the exported folder.

    Args:
        base: The base model of adapters alone; None for a whole model.
        rank: Of the adapters.
        not_taken: What of the adapters vLLM's LoRA doesn't take.
    """
    if base is None:
        return ["vllm serve . --served-model-name my-model"]
    if not_taken:
        return []
    more = f" --max-lora-rank {_allowed_rank(rank)}" if rank is not None and rank > 16 else ""
    return [f"vllm serve {base} --enable-lora{more} --lora-modules my-model=."]


def llama_commands() -> list[str]:
    """How GGUF files are made and served: one for the text, one for the pictures."""
    return [
        "python llama.cpp/convert_hf_to_gguf.py . --outtype f16 --outfile model.gguf",
        "python llama.cpp/convert_hf_to_gguf.py . --mmproj --outfile mmproj-model.gguf",
        "llama-server -m model.gguf --mmproj mmproj-model.gguf",
    ]


def ollama_commands(architecture: str) -> list[str]:
    """How Ollama gets the model."""
    if imports_itself(architecture):
        first = "echo 'FROM .' > Modelfile"
    else:
        first = r"printf 'FROM ./model.gguf\nFROM ./mmproj-model.gguf\n' > Modelfile"
    return [first, "ollama create my-model", "ollama run my-model"]


def _allowed_rank(rank: int) -> int:
    """The smallest power of two that a rank fits into, as vLLM wants it.

    >>> _allowed_rank(24)
    32
    """
    allowed = 8
    while allowed < rank:
        allowed *= 2
    return allowed
