"""Keeps the gradients of Gemma 3n finite where the embedding of its padding is nothing but zeros.

It scales streams of hidden states to the size of the first, `mean(h²) ** 0.5`, whose gradient at zero is
infinite. transformers (5.23) starts the padding's embedding as zeros. Padding then has a gradient of zero
times infinite, and where it stands before the words, in every layer, every weight's gradient is NaN.
"""

from typing import Any

from torch import Tensor, nn


def install(model: Any) -> None:
    """Let padding have an embedding of ones where it has one of zeros. Does nothing to other families.

    No token sees padding, and nothing is learned from it, so that all else is computed as before. The weights
    stay as they are: where the head is tied, the logit of padding comes from the same row.

    Args:
        model: As `from_pretrained` gives it.
    """
    decoder = model.get_decoder()
    if not hasattr(getattr(decoder, "config", None), "altup_num_inputs"):
        return
    embedding = model.get_input_embeddings()
    if embedding.padding_idx is None or embedding.weight.is_meta:  # in a plan, weights have no values
        return
    if not embedding.weight[embedding.padding_idx].any():
        embedding.register_forward_hook(_fill_padding)


def _fill_padding(embedding: nn.Embedding, args: tuple[Tensor], embedded: Tensor) -> Tensor:
    """The output of an embedding, with ones for padding.

    >>> import torch
    >>> _fill_padding(nn.Embedding(3, 2, padding_idx=0), (torch.tensor([0]),), torch.zeros(1, 2))
    tensor([[1., 1.]])
    """
    padding: Any = embedding.padding_idx
    return embedded.masked_fill(args[0].eq(padding)[..., None], 1)
