"""Which image-text models can't be trained here, and why."""

from transformers import PretrainedConfig

_INSTEAD = "choose a model with one decoder, such as paligemma, smolvlm or qwen3_vl"
_ONE_ROW = "its pictures lie in one long row, which is proved for minicpmv4_6 alone"
_BY_TYPE = {
    "blip": "its decoder has no tokens that stand for a picture, and its generate cuts off the last token",
    "evolla": "it reads proteins, not pictures",
    "fuyu": "its processor writes patches and text with a tokenizer of its own, so no mask can be exact",
    "git": "its pictures have no tokens, so what its head gives is longer than what it reads",
    "instructblipvideo": "it reads a video as four pictures that have no place in a chat",
    "kosmos-2.5": "its processor cuts and pads texts on its own, so no mask can be exact",
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_7"), _ONE_ROW),
    "mistral4": "it reads no pictures",
}
"""Types of models whose own code stands in the way, and how."""


def why_not_trainable(config: PretrainedConfig) -> str | None:
    """Why a model can't be trained here, and what to use; None if nothing is known against it.

    Args:
        config: Of the whole model.

    >>> from transformers import T5Config
    >>> why_not_trainable(T5Config())
    "t5 can't be trained: it reads questions with an encoder and writes answers with a decoder, ..."
    """
    kind = config.model_type
    if kernel := _code_from_hub(config):
        return (
            f"its config.json asks for attention code from the hub ({kernel!r}), which would run; take "
            "attn_implementation out of it, and name it as model.attn_implementation if you trust it"
        )
    if has_text_encoder(config):
        return (
            f"{kind} can't be trained: it reads questions with an encoder and writes answers with a decoder, "
            f"and only chats in one sequence have exact masks here; {_INSTEAD}"
        )
    reason = _BY_TYPE.get(kind)
    return f"{kind} can't be trained: {reason}; {_INSTEAD}" if reason else None


def _code_from_hub(config: PretrainedConfig) -> str | None:
    """The kernel of the hub that a model's own settings name as its attention; None without one."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    named = (getattr(part, "_attn_implementation", None) for part in parts)
    return next((name for name in named if isinstance(name, str) and "/" in name), None)


def has_text_encoder(config: PretrainedConfig) -> bool:
    """Whether answers are written by another part of a model than the one that reads questions."""
    parts = (config, config.get_text_config(decoder=True), getattr(config, "text_config", None))
    return any(getattr(part, "is_encoder_decoder", False) for part in parts)
