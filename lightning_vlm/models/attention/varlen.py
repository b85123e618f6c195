"""Attention over sequences of different lengths that stand in one row, each of which sees itself alone.

PyTorch has the kernel, FlashAttention (https://arxiv.org/abs/2307.08691), as
`torch.nn.attention.varlen.varlen_attn`. Where it can't compute what is asked for, a loop does so exactly.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_vlm.errors import UserError
from lightning_vlm.models.attention.kernel import (
    KERNEL_DTYPES,
    WIDEST_HEAD,
    compute_dtype,
    kernel_runs_on,
)

NAME = "flash_varlen"
"""What transformers knows this attention by. The word "flash" makes it pass the lengths of pictures."""

WITH_LENGTHS = "flash_varlen_with_lengths"
"""Its name while a language model gets lengths. transformers finds no mask function of this name, so that it
makes no mask and doesn't ask the device whether positions restart."""

UNKNOWN_TO_SDPA = ("softcap", "s_aux")
"""Arguments that change the scores, and that `sdpa` may ignore."""

CHANGES_SCORES = (*UNKNOWN_TO_SDPA, "position_bias")
"""Arguments that change the scores, which neither the kernel nor the loop knows of."""

_KERNEL_GROUPS_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""PyTorch 2.11 has no `enable_gqa`."""

_lengths: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Lengths of sequences by the tensor of their ends: the device is asked once for all layers."""


def register() -> None:
    """Make the attention known to transformers; more than once does no harm."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    AttentionInterface.register(WITH_LENGTHS, attend_with_lengths)


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
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Where the call has `cu_seq_lens_q`, several sequences stand in one row, or in rows one after another, and
    each sees itself alone. All other calls are those of `sdpa`, with its masks.

    Args:
        module: The attention layer; says whether it is causal if `is_causal` doesn't.
        query: Tensor of shape [batch, heads, length, dim].
        key: Tensor of shape [batch, key heads, length, dim]; heads are a multiple of key heads.
        value: As `key`; its dim may be smaller.
        attention_mask: As of `sdpa`. Not used with `cu_seq_lens_q`.
        dropout: Probability of leaving a score out.
        scaling: Factor of the scores; None is 1 / √dim.
        is_causal: Whether a token sees only those before it.
        sliding_window: How many tokens a token sees, itself among them; None is all. Only where it is causal.
            Without `cu_seq_lens_q` the mask has it.
        cu_seq_lens_q: Tensor of shape [sequences + 1], int32: where each sequence begins, and the end.
        max_length_q: Length of the longest one, or more; None if `cu_seq_lens_q` has to say.
        **kwargs: What else `sdpa` takes.

    Returns:
        Tensor of shape [batch, length, heads, dim]; and None, as there are no scores to return.

    Raises:
        UserError: Something is asked for that can't be computed exactly.
    """
    _refuse(module, [name for name in UNKNOWN_TO_SDPA if kwargs.get(name) is not None])
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
    _refuse_what_is_inexact(module, query, key, causal, sliding_window, kwargs)
    batch, heads, length, _ = query.shape
    query, key, value = (_rows(tensor) for tensor in (query, key, value))
    if kernel_takes(query, value, dropout):
        longest = max_length_q if isinstance(max_length_q, int) else max(lengths_of(cu_seq_lens_q))
        out = _kernel(query, key, value, cu_seq_lens_q, longest, causal, scaling, sliding_window)
    else:
        out = attend_in_turn(query, key, value, cu_seq_lens_q, causal, scaling, sliding_window, dropout)
    return out.view(batch, length, heads, value.shape[-1]), None


def attend_with_lengths(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `attend`, for a language model that was given lengths: without them it would mix samples.

    Raises:
        UserError: The lengths didn't reach this layer.
    """
    if kwargs.get("cu_seq_lens_q") is None:
        raise UserError(
            f"{type(module).__name__}: found no lengths of the samples in a row, without which "
            "they would see one another; set model.attn_implementation to sdpa"
        )
    return attend(module, query, key, value, attention_mask, **kwargs)


def attend_in_turn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    causal: bool,
    scaling: float | None = None,
    sliding_window: int | None = None,
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
        sliding_window: As in `attend`.
        dropout: Probability of leaving a score out.

    Returns:
        Tensor of shape [tokens, heads, dim].
    """
    lengths = lengths_of(cu_seq_lens)
    grouped = query.shape[1] != key.shape[1]
    outs = []
    for parts in zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True):
        one_query, one_key, one_value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
        mask = None
        if sliding_window is not None and one_query.shape[2] > sliding_window:
            mask = _band(one_query.shape[2], sliding_window, query.device)
        out = scaled_dot_product_attention(
            one_query,
            one_key,
            one_value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        outs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outs)


def lengths_of(cu_seq_lens: Tensor) -> list[int]:
    """Lengths of sequences. The device is asked once for each tensor, not in each layer.

    Args:
        cu_seq_lens: Tensor of shape [sequences + 1]; its values don't change.

    >>> lengths_of(torch.tensor([0, 3, 8, 9]))
    [3, 5, 1]
    """
    if torch.compiler.is_compiling():  # a traced function has no memory
        return cu_seq_lens.diff().tolist()
    if cu_seq_lens not in _lengths:
        _lengths[cu_seq_lens] = cu_seq_lens.diff().tolist()
    return _lengths[cu_seq_lens]


def _refuse_what_is_inexact(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    causal: bool,
    sliding_window: int | None,
    kwargs: dict[str, Any],
) -> None:
    found = [name for name in CHANGES_SCORES if kwargs.get(name) is not None]
    if sliding_window is not None and not causal:
        found.append("sliding_window in both directions")
    if key.shape[2] != query.shape[2]:
        found.append(f"{key.shape[2]} keys for {query.shape[2]} queries")
    _refuse(module, found)


def _refuse(module: nn.Module, found: list[str]) -> None:
    if found:
        raise UserError(
            f"{type(module).__name__}: {NAME} can't attend exactly with {', '.join(found)}; "
            "set model.attn_implementation to sdpa, or to eager"
        )


def _rows(tensor: Tensor) -> Tensor:
    """[batch, heads, length, dim] to [batch * length, heads, dim]."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Tensor of shape [length, length], bool: whether the token of a row sees that of a column."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def kernel_takes(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether the kernel computes this exactly: in 16 bits, without dropout, for heads of up to 256."""
    return (
        compute_dtype(query) in KERNEL_DTYPES
        and value.shape[-1] <= query.shape[-1] <= WIDEST_HEAD
        and dropout == 0
        and kernel_runs_on(query.device)
    )


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    longest: int,
    causal: bool,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    dim, value_dim = query.shape[-1], value.shape[-1]
    dtype = compute_dtype(query)
    options: dict[str, Any] = {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and _KERNEL_GROUPS_HEADS:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # Heads have one width that is a multiple of 8; zeros change no score and are cut off again.
    width = -(-dim // 8) * 8
    query, key, value = (_widened(tensor.to(dtype), width) for tensor in (query, key, value))
    left = -1 if sliding_window is None else sliding_window - 1
    out = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=dim**-0.5 if scaling is None else scaling,
        window_size=(left, 0) if causal else (-1, -1),
        **options,
    )
    assert isinstance(out, Tensor)  # without `return_aux`
    return out[..., :value_dim]


def _widened(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[-1]
    return pad(tensor, (0, missing)) if missing else tensor
