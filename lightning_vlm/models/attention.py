"""Attention of a vision tower over many pictures at once: one kernel call a layer in place of a loop.

Without a flash attention package, transformers cuts the patches of a batch into pictures or windows and calls
the attention once for each, in a Python loop, in every layer (Qwen2-VL, GLM-4V, Kimi and some thirty more).
PyTorch has the kernel that takes them all: FlashAttention over sequences of different lengths
(https://arxiv.org/abs/2307.08691), as `torch.nn.attention.varlen.varlen_attn`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks.modes import eval_mode
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from typing_extensions import override

from lightning_vlm.errors import UserError
from lightning_vlm.models.parts import vision_tower

NAME = "flash_varlen"
"""What transformers knows this attention by. The word "flash" makes it pass the lengths of pictures."""

WIDEST_HEAD = 256
"""The widest head that the kernel takes, in dimensions."""

TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far the kernel's tower may be from that of `sdpa`, as a share of the norm. Rounding alone makes about a
tenth of this on a deep tower; pictures that see one another make several times as much."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Where the call has `cu_seq_lens_q`, several sequences stand in one row and each sees itself alone. All
    other calls are those of `sdpa`, with its masks.

    Args:
        module: The attention layer; says whether it is causal if `is_causal` doesn't.
        query: Tensor of shape [batch, heads, length, dim].
        key: Tensor of shape [batch, key heads, length, dim]; heads are a multiple of key heads.
        value: As `key`.
        attention_mask: As of `sdpa`. Not used with `cu_seq_lens_q`.
        dropout: Probability of leaving a score out.
        scaling: Factor of the scores; None is 1 / √dim.
        is_causal: Whether a token sees only those before it.
        cu_seq_lens_q: Tensor of shape [sequences + 1], int32: where each sequence begins, and the end.
        max_length_q: Length of the longest one; None if `cu_seq_lens_q` has to say.
        **kwargs: What else `sdpa` takes.

    Returns:
        Tensor of shape [batch, length, heads, dim]; and None, as there are no scores to return.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    batch, heads, length, _ = query.shape
    query, key, value = (_rows(tensor) for tensor in (query, key, value))
    if _kernel_takes(query, key, value, dropout):
        if max_length_q is None:
            max_length_q = int(cu_seq_lens_q.diff().max())
        out = _kernel(query, key, value, cu_seq_lens_q, int(max_length_q), causal, scaling)
    else:
        out = attend_in_turn(query, key, value, cu_seq_lens_q, causal, scaling, dropout)
    return out.view(batch, length, heads, value.shape[-1]), None


def attend_in_turn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    causal: bool,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The same result as the kernel's, one sequence after another: on a CPU, in float32, for wide heads.

    Args:
        query: Tensor of shape [tokens, heads, dim].
        key: Tensor of shape [tokens, key heads, dim].
        value: As `key`.
        cu_seq_lens: Tensor of shape [sequences + 1], as in `attend`.
        causal: Whether a token sees only those before it.
        scaling: Factor of the scores; None is 1 / √dim.
        dropout: Probability of leaving a score out.

    Returns:
        Tensor of shape [tokens, heads, dim].
    """
    lengths = cu_seq_lens.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    outs = []
    for parts in zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True):
        one_query, one_key, one_value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
        out = scaled_dot_product_attention(
            one_query,
            one_key,
            one_value,
            dropout_p=dropout,
            is_causal=causal,
            scale=scaling,
            enable_gqa=grouped,
        )
        outs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outs)


def use_varlen_attention(model: PreTrainedModel) -> bool:
    """Let the vision tower attend by `attend`, if it would use `sdpa` and knows flash attention.

    Args:
        model: As `from_pretrained` gives it. Its configuration changes in memory, not in what it saves.

    Returns:
        Whether the tower does so from now on.
    """
    tower: Any = vision_tower(model)
    if tower is None or not tower._supports_flash_attn or tower.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    # The public setter would look for a package or a kernel of this name.
    tower.config._attn_implementation_internal = NAME
    return True


class VarlenAttentionCheck(Callback):
    """Checks the vision tower's attention on the first batch with pictures."""

    def __init__(self) -> None:
        self._is_done = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if "pixel_values" in batch.inputs:
            self.check_once(pl_module.model, batch.inputs)

    def check_once(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
        """Call `check_varlen_attention` the first time only, and say what it found. Arguments as there."""
        if self._is_done:
            return
        self._is_done = True
        distance = check_varlen_attention(model, inputs)
        if distance is not None:
            rank_zero_info(
                f"The vision tower attends with FlashAttention; it is {distance:.1%} from sdpa here"
            )


def check_varlen_attention(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float | None:
    """Compare the tower's output with that of `sdpa` on the pictures of a batch, where the kernel is in use.

    Args:
        model: One that `use_varlen_attention` was called with.
        inputs: What its forward takes, with pictures, on the device of the model.

    Returns:
        The distance as a share of the norm; None where the kernel isn't in use: on a CPU, and in towers that
        never put several pictures into one row, whose output is the same to the bit.

    Raises:
        UserError: The distance is more than rounding can explain.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None or not pixels.is_cuda or _tower_attention(model) != NAME:
        return None
    limit = TOLERANCE.get(_dtype(next(model.get_encoder(modality="image").parameters())), 1e-4)
    distance = tower_distance(model, inputs)
    if not distance <= limit:
        raise UserError(
            f"the vision tower gives other features with {NAME} than with sdpa: found a distance of "
            f"{distance:.1%}, expected at most {limit:.1%}; set model.attn_implementation to sdpa"
        )
    return distance or None


@torch.no_grad()
def tower_distance(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float:
    """How far the tower's output is from that of `sdpa`, as a share of the norm.

    Args:
        model: One that `use_varlen_attention` was called with.
        inputs: What its forward takes, with pictures.
    """
    tower = model.get_encoder(modality="image")
    features: Any = model.base_model.get_image_features
    takes = inspect.signature(features).parameters
    pictures = {name: value for name, value in inputs.items() if name in takes}
    outputs: list[Tensor] = []
    hook = tower.register_forward_hook(lambda _, args, output: outputs.append(output[0].float()))
    try:
        with eval_mode(tower):
            for implementation in ("sdpa", NAME):
                tower.config._attn_implementation_internal = implementation
                features(**pictures)
    finally:
        hook.remove()
        tower.config._attn_implementation_internal = NAME
    expected, found = outputs
    return ((found - expected).norm() / expected.norm()).item()


def _tower_attention(model: PreTrainedModel) -> str | None:
    return model.get_encoder(modality="image").config._attn_implementation


def _rows(tensor: Tensor) -> Tensor:
    """[batch, heads, length, dim] to [batch * length, heads, dim]."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _kernel_takes(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether the kernel computes this exactly: in 16 bits, without dropout, for heads of up to 256."""
    return (
        query.is_cuda
        and _dtype(query) in (torch.float16, torch.bfloat16)
        and query.shape[-1] == value.shape[-1] <= WIDEST_HEAD
        and dropout == 0
    )


def _dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a matrix multiplication would have here."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tensor.dtype


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    longest: int,
    causal: bool,
    scaling: float | None,
) -> Tensor:
    dtype = _dtype(query)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # PyTorch 2.11 has no `enable_gqa`
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = varlen_attn(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0) if causal else (-1, -1),
    )
    assert isinstance(out, Tensor)  # without `return_aux`
    return out
