"""Attention without padding and without loops, of vision towers and of language models.

Without a flash attention package, transformers cuts the patches of a batch into pictures or windows and calls
the attention once for each, in a Python loop, in every layer (Qwen2-VL, GLM-4V, Kimi and some thirty more).
Language models compute padding, and rows of several samples need a mask of length × length. `attend` takes
the lengths instead, in one kernel call a layer.
"""

from lightning_vlm.models.attention.callback import VarlenAttentionCheck
from lightning_vlm.models.attention.check import check_attention
from lightning_vlm.models.attention.families import VarlenUse, attention_line, use_varlen_attention
from lightning_vlm.models.attention.lengths import kernel_takes_lengths, takes_lengths, varlen_lengths
from lightning_vlm.models.attention.varlen import NAME, attend, attend_in_turn

__all__ = [
    "NAME",
    "VarlenAttentionCheck",
    "VarlenUse",
    "attend",
    "attend_in_turn",
    "attention_line",
    "check_attention",
    "kernel_takes_lengths",
    "takes_lengths",
    "use_varlen_attention",
    "varlen_lengths",
]
