"""Mixtures of experts: four experts, of which each token goes through two."""

from typing import Any

from transformers import PretrainedConfig, Qwen3VLMoeConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

from tests.support.tiny.family import Ids
from tests.support.tiny.qwen import QWEN3_VL_TEMPLATE, qwen3_vl_config, qwen_family, qwen_processor

MIXTURES = ("qwen3_vl_moe",)
"""The families with experts."""
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


# --- Qwen3-VL's mixture: as Qwen3-VL, with experts in each layer and a head of its own ----------------------
def _qwen3_vl_moe_config(ids: Ids, text: dict) -> PretrainedConfig:
    like = qwen3_vl_config(ids, {**text, **_EXPERTS}).to_dict()
    for part in ("text_config", "vision_config"):
        del like[part]["model_type"]
    return Qwen3VLMoeConfig(**{**like, "tie_word_embeddings": False})


QWEN3_VL_MOE = qwen_family(
    _qwen3_vl_moe_config, qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, 32), QWEN3_VL_TEMPLATE
)
