"""What `attn_implementation` may be, and what is wrong where it can't be had."""

import re

from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_vlm.errors import UserError
from lightning_vlm.models.attention.families import use_varlen_attention
from lightning_vlm.models.attention.varlen import NAME
from lightning_vlm.nearest import did_you_mean, shorten

CHOICES = (
    "auto",
    NAME,
    "sdpa",
    "eager",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
"""The usual ones. transformers knows more of them, and kernels of the hub by `owner/name`."""

_REASONS = (
    (
        r"FlashAttention(\d) has been toggled on.*error: (.+?)\.?\s*$",
        "flash_attention_{0}: {1}; auto needs no package: it takes PyTorch's own FlashAttention "
        f"({NAME}) where that is exact, else sdpa",
    ),
    (
        r"(\w+) does not support Flash Attention (\d)",
        "{0} has no flash_attention_{1} in transformers; expected auto",
    ),
    (
        r"(\w+) does not support an attention.*flex_attention",
        "{0} has no flex_attention in transformers; expected auto",
    ),
    (
        r"(\w+) does not support an attention.*scaled_dot_product",
        "{0} has no sdpa in transformers; expected auto",
    ),
)
"""What transformers says of an attention that can't be had, and what a person reads."""


def for_transformers(attn_implementation: str | None) -> str | None:
    """What `from_pretrained` is to be asked for; None where it chooses and `settle` goes on from there.

    Args:
        attn_implementation: As written by a user; None is `auto`.

    Raises:
        UserError: There is no such attention.

    >>> for_transformers("eager"), for_transformers("auto")
    ('eager', None)
    """
    if attn_implementation in (None, "auto", NAME):
        return None
    name = attn_implementation.removeprefix("paged|")
    known = {*CHOICES, *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if name not in known and "/" not in name:
        # The newest need a new card: nobody means them who doesn't say so.
        near = [choice for choice in CHOICES if choice[-1] not in "34" or choice[-1] in name]
        raise UserError(
            f"attn_implementation: found {shorten(attn_implementation, 40)}; expected {', '.join(CHOICES)}, "
            f"or owner/name of a kernel on the hub{did_you_mean(name, near)}"
        )
    return attn_implementation


def settle(model: PreTrainedModel, attn_implementation: str | None) -> None:
    """Put `flash_varlen` where it is exact, if that is what was asked for.

    Args:
        model: As `from_pretrained` gives it.
        attn_implementation: As in `for_transformers`.

    Raises:
        UserError: It was asked for by name, and the language model can't have it.
    """
    if for_transformers(attn_implementation) is not None:
        return
    use = use_varlen_attention(model)
    if attn_implementation == NAME and not use.language:
        raise UserError(
            f"attn_implementation: found {NAME}, which isn't exact for {type(model).__name__}: "
            f"{use.why_not_language}; expected auto"
        )


def why_not_attention(text: str) -> str | None:
    """What to say of an error of transformers, if it is about the attention.

    Args:
        text: What it says.

    >>> why_not_attention("LlavaModel does not support Flash Attention 2 yet. Please ...")
    'attn_implementation: LlavaModel has no flash_attention_2 in transformers; expected auto'
    """
    for pattern, reason in _REASONS:
        if found := re.search(pattern, text, re.DOTALL):
            return f"attn_implementation: {reason.format(*found.groups())}"
    return None
