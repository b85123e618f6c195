"""Lengths of the samples of a batch, for the language model and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.models.attention.families import why_in_turn
from lightning_vlm.models.attention.kernel import KERNEL_DTYPES, compute_dtype
from lightning_vlm.models.attention.varlen import NAME, WITH_LENGTHS


def takes_lengths(model: PreTrainedModel) -> bool:
    """Whether `use_varlen_attention` found that the language model can attend by lengths."""
    return model.get_decoder().config._attn_implementation == NAME


def kernel_takes_lengths(model: PreTrainedModel) -> bool:
    """Whether lengths save time where a mask would do: the kernel takes all layers of the language model.

    Args:
        model: One that `takes_lengths`, on the device where it computes, in the autocast that it computes in.
    """
    embeddings: Any = model.get_input_embeddings()
    return compute_dtype(embeddings.weight) in KERNEL_DTYPES and not why_in_turn(model.get_decoder())


@contextmanager
def varlen_lengths(model: PreTrainedModel, cu_seq_lens: Tensor, max_length: int) -> Iterator[None]:
    """Let each sequence see itself alone in the language model, in the forward passes inside of this context.

    Layers get the lengths as arguments, so that the backward pass may compute them again when the context has
    been left. The language model gets no attention mask and makes none: the padding at the end of a row is a
    sequence of its own. The vision tower gets nothing.

    Args:
        model: One that `takes_lengths`, adapted or not, its blocks compiled or not.
        cu_seq_lens: Tensor of shape [sequences + 1], int32, on the device of the model: where each sequence
            begins in the rows of the batch, laid end to end, and the end.
        max_length: Length of the longest one, or more.

    Raises:
        ValueError: The language model doesn't take lengths.
    """
    decoder = model.get_decoder()
    if not takes_lengths(model):
        raise ValueError(f"{type(decoder).__name__}: found no {NAME}; expected a language model that has it")
    lengths = {
        "attention_mask": None,
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": max_length,
        "max_length_k": max_length,
    }

    def give_lengths(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | lengths

    handle = decoder.register_forward_pre_hook(give_lengths, with_kwargs=True)
    decoder.config._attn_implementation_internal = WITH_LENGTHS
    try:
        yield
    finally:
        decoder.config._attn_implementation_internal = NAME
        handle.remove()
