"""Tiny real models of the published families, with random weights, for tests.

Everything but the size is real: classes, configuration, processor and chat template (in the shape of the
published ones, in our own words). Those of SmolVLM, Idefics3, Qwen2-VL, Qwen3-VL, Gemma 3 and Pixtral were
rendered beside copies of the published ones and gave the same text for system turns, pictures, several turns
and prompts; tools and video are left out. Adding a family is adding a row to `FAMILIES`.
"""

import difflib
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from lightning_vlm.errors import UserError
from tests.support.tiny.family import TEXT_SIZE, Family, make_tokenizer
from tools.newer_classes import stood_in_for

# isort: split
with stood_in_for():  # `make test-lowest` runs beside a transformers that lacks the newest families
    from tests.support.tiny.blip import BLIP2, INSTRUCTBLIP, KOSMOS2
    from tests.support.tiny.cohere import AYA_VISION, COHERE2_VISION
    from tests.support.tiny.deepseek import DEEPSEEK_OCR2, DEEPSEEK_VL
    from tests.support.tiny.gemma import GEMMA3, PALIGEMMA
    from tests.support.tiny.gemma4 import GEMMA4, GEMMA4_31B
    from tests.support.tiny.glm import GLM4V, GLM46V, GLM_OCR
    from tests.support.tiny.granite import GRANITE4_VISION, GRANITE_DOCLING
    from tests.support.tiny.idefics import IDEFICS2, IDEFICS3, SMOLVLM
    from tests.support.tiny.liquid import LFM2_VL, LFM3_VL
    from tests.support.tiny.llava import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION
    from tests.support.tiny.llava_kin import LLAVA_NEXT_VIDEO, VIDEO_LLAVA, VIPLLAVA
    from tests.support.tiny.minicpm import MINICPMV4_6
    from tests.support.tiny.moe import ERNIE4_5_VL_MOE, GLM4V_MOE, LLAMA4, QWEN3_5_MOE, QWEN3_VL_MOE
    from tests.support.tiny.molmo import MOLMO2
    from tests.support.tiny.ocr import GOT_OCR2, LIGHTON_OCR
    from tests.support.tiny.others import INTERNVL, INTERNVL3_5, MISTRAL3, MLLAMA, PIXTRAL
    from tests.support.tiny.ovis import OVIS2
    from tests.support.tiny.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
    from tests.support.tiny.qwen3_5 import QWEN3_5
    from tests.support.tiny.readers import EXAONE4_5, HUNYUAN_VL, PADDLEOCR_VL, VIDEO_LLAMA_3
    from tests.support.tiny.timm_towers import FAST_VLM, GEMMA3N, PERCEPTION_LM

__all__ = ["FAMILIES", "KINDS", "SAMPLE", "Family", "build"]

_ROWS: dict[str, Family] = {
    "llava": LLAVA,
    "llava_next": LLAVA_NEXT,
    "llava_onevision": LLAVA_ONEVISION,
    "smolvlm": SMOLVLM,
    "idefics3": IDEFICS3,
    "qwen2_vl": QWEN2_VL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
    "paligemma": PALIGEMMA,
    "gemma3": GEMMA3,
    "internvl": INTERNVL,
    "internvl3_5": INTERNVL3_5,
    "lfm2_vl": LFM2_VL,
    "lfm3_vl": LFM3_VL,
    "ovis2": OVIS2,
    "lighton_ocr": LIGHTON_OCR,
    "got_ocr2": GOT_OCR2,
    "minicpmv4_6": MINICPMV4_6,
    "deepseek_vl": DEEPSEEK_VL,
    "molmo2": MOLMO2,
    "deepseek_ocr2": DEEPSEEK_OCR2,
    "pixtral": PIXTRAL,
    "mistral3": MISTRAL3,
    "mllama": MLLAMA,
    "qwen3_vl_moe": QWEN3_VL_MOE,
    "qwen3_5_moe": QWEN3_5_MOE,
    "ernie4_5_vl_moe": ERNIE4_5_VL_MOE,
    "glm4v_moe": GLM4V_MOE,
    "qwen3_5": QWEN3_5,
    "gemma4": GEMMA4,
    "gemma4_31b": GEMMA4_31B,
    "idefics2": IDEFICS2,
    "granite4_vision": GRANITE4_VISION,
    "granite_docling": GRANITE_DOCLING,
    "perception_lm": PERCEPTION_LM,
    "fast_vlm": FAST_VLM,
    "gemma3n": GEMMA3N,
    "vipllava": VIPLLAVA,
    "llava_next_video": LLAVA_NEXT_VIDEO,
    "video_llava": VIDEO_LLAVA,
    "aya_vision": AYA_VISION,
    "cohere2_vision": COHERE2_VISION,
    "glm4v": GLM4V,
    "glm46v": GLM46V,
    "glm_ocr": GLM_OCR,
    "kosmos-2": KOSMOS2,
    "blip-2": BLIP2,
    "instructblip": INSTRUCTBLIP,
    "paddleocr_vl": PADDLEOCR_VL,
    "hunyuan_vl": HUNYUAN_VL,
    "video_llama_3": VIDEO_LLAMA_3,
    "exaone4_5": EXAONE4_5,
    "llama4": LLAMA4,
}
_OTHER_TYPES = {"internvl3_5": "internvl", "gemma4_31b": "gemma4"}

FAMILIES = {name: row for name, row in _ROWS.items() if _OTHER_TYPES.get(name, name) in CONFIG_MAPPING}
"""The families that can be built beside this version of transformers, by the name of their `model_type`
(Pixtral's is `llava`, InternVL 3.5's `internvl`)."""

SAMPLE = (
    "llava",
    "llava_next",
    "llava_onevision",
    "smolvlm",
    "idefics3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "paligemma",
    "gemma3",
    "internvl",
    "pixtral",
    "mistral3",
    "mllama",
)
"""The families on which `make test` tries every check; `make test-all` does so on all."""
KINDS = tuple(
    family for family in SAMPLE if family not in ("llava_onevision", "idefics3", "qwen2_vl", "pixtral")
)
"""One of each kind in `SAMPLE`, where LLaVA-NeXT, SmolVLM, Qwen2.5-VL and Mistral 3 have a twin. They are
enough for a test that goes through all families; one that names a few families means these."""


def build(family: str, directory: Path, seed: int = 0) -> Path:
    """Save a tiny model of a family: weights, configuration, tokenizer, processor, template.

    Args:
        family: A key of `FAMILIES`.
        directory: Where to save it; made if missing.
        seed: Chooses the random weights.
    Returns:
        The directory, loadable by `AutoProcessor` and `AutoModelForImageTextToText`.
    Raises:
        UserError: There is no such family.

    >>> import tempfile
    >>> folder = build("llava", Path(tempfile.mkdtemp()))
    >>> AutoModelForImageTextToText.from_pretrained(folder).num_parameters() < 500_000
    True
    """
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=3, cutoff=0.4) or sorted(FAMILIES)
        raise UserError(f"found no tiny model {family!r}; expected one of: {', '.join(near)}")
    row = FAMILIES[family]
    tokenizer = make_tokenizer(row)
    processor = row.processor(tokenizer, row.template)  # some add tokens to the tokenizer
    ids = tokenizer.get_vocab()
    text = {
        **TEXT_SIZE,
        "vocab_size": len(tokenizer),
        "pad_token_id": ids[row.pad],
        "eos_token_id": ids[row.eos],
        "bos_token_id": ids[row.bos] if row.bos else None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(row.config(ids, text), dtype=torch.float32)
        _open_gates(model)
    model.generation_config = GenerationConfig(
        pad_token_id=ids[row.pad],
        bos_token_id=text["bos_token_id"],
        eos_token_id=[ids[token] for token in (row.eos, *row.also_ends)],
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return Path(directory)


def _open_gates(model: PreTrainedModel) -> None:
    """Give values to weights that start as nothing but zeros: no picture would come through them.

    And to those of Idefics2's resampler, which start as ones: all tokens of a picture would be alike.
    Gemma 3n's scale of each layer's own embeddings is a vector of zeros; its convolutions start too small.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_zero = not weight.any() and (weight.ndim > 1 or weight.numel() == 1)
            if "timm_model" in name and weight.ndim == 4:  # what is on a picture would not come through many
                torch.nn.init.kaiming_normal_(weight)
            elif is_zero or name.endswith((".latents", ".correct_output_scale")):
                weight.normal_(std=0.2)
        if model.config.model_type == "gemma3n":
            # Gradients of the size of an embedding of zeros are NaN.
            for embedding in (model.get_input_embeddings(), model.get_decoder().embed_tokens_per_layer):
                embedding.weight[embedding.padding_idx].normal_(std=0.2)
