"""New tokens: rows of the embeddings and of the head that begin at the mean of all others.

The tokenizer gives new tokens their ids, so that no two share one. A row that begins at the mean changes
the model least: it gives the new token the logit of an average one (Hewitt 2021, "Initializing
New Word Embeddings for Pretrained Language Models").
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.errors import UserError

_RANGE = re.compile(r"(\D*)(\d+)\.\.(\d+)(\D*)")
_MOST_TOKENS = 100_000


def expand_ranges(tokens: Sequence[str]) -> list[str]:
    """New tokens, each range of numbers as all of its tokens.

    Raises:
        UserError: A range that ends before it begins, or that is huge.

    >>> expand_ranges(["<seg>", "<loc_8..11>", "<bin08..10>"])
    ['<seg>', '<loc_8>', '<loc_9>', '<loc_10>', '<loc_11>', '<bin08>', '<bin09>', '<bin10>']
    """
    expanded = []
    for token in tokens:
        match = _RANGE.fullmatch(token)
        if match is None:
            expanded.append(token)
            continue
        before, first, last, behind = match.groups()
        numbers = range(int(first), int(last) + 1)
        if not 0 < len(numbers) <= _MOST_TOKENS:
            raise UserError(
                f"new_tokens: found {token!r}; expected a range such as <loc_0..999>, of at most "
                f"{_MOST_TOKENS:,} tokens"
            )
        width = len(first) if first.startswith("0") and first != "0" else 0
        expanded += [f"{before}{number:0{width}}{behind}" for number in numbers]
    return expanded


def add_to_tokenizer(processor: ProcessorMixin, tokens: Sequence[str]) -> None:
    """Add new tokens to a processor's tokenizer. They are words, not special: an answer may hold them.

    Args:
        processor: Of a model.
        tokens: The tokens; `<loc_0..999>` stands for a thousand of them.

    Raises:
        UserError: One is empty, given twice, or known already.
    """
    tokenizer: Any = processor.tokenizer
    known = tokenizer.get_vocab()
    tokens = expand_ranges(tokens)
    for index, token in enumerate(tokens):
        problem = None
        if not token:
            problem = "empty"
        elif token in tokens[:index]:
            problem = "twice"
        elif token in known:
            problem = "as a token that the model has"
        if problem:
            raise UserError(f"new_tokens: found {token!r} {problem}; expected words that aren't tokens yet")
    tokenizer.add_tokens(list(tokens))


def refuse_new_tokens(model: PreTrainedModel) -> None:
    """Refuse new tokens where ids behind those of text are read from the tables of pictures and of sound.

    Args:
        model: As loaded, perhaps without weights. Its configuration says where such tables begin (Gemma 3n).

    Raises:
        UserError: A part of the model has a table of its own.
    """
    parts = [getattr(model.config, name, None) for name in model.config.sub_configs]
    if any(hasattr(part, "vocab_offset") for part in parts):
        raise UserError(
            f"new_tokens: {type(model).__name__} takes every token behind its own for one of sound; leave "
            "new_tokens out and write with words that it has"
        )


def new_token_ids(processor: ProcessorMixin, tokens: Sequence[str]) -> range:
    """The ids that `add_to_tokenizer` gave to new tokens, in order."""
    if not tokens:
        return range(0)
    tokenizer: Any = processor.tokenizer
    tokens = expand_ranges(tokens)
    first = tokenizer.convert_tokens_to_ids(tokens[0])
    return range(first, first + len(tokens))


def add_rows(model: PreTrainedModel, rows: range) -> None:
    """Give a model rows for new tokens, each the mean of those before, in place; all else computes as before.

    Args:
        model: As from `load_model`, quantised or not; its own rows must reach up to the first new one.
        rows: Ids of the new tokens. Where a model has rows to spare, they are used.

    Raises:
        UserError: The model can't have any; see `refuse_new_tokens`.
    """
    if len(rows):
        refuse_new_tokens(model)
    embedding: Any = model.get_input_embeddings()
    before = embedding.weight.detach()
    sizes = [len(weight) for weight in _weights(model)]
    in_embeddings, in_head = sizes[0], sizes[-1]
    if rows.stop > in_head:
        model.resize_token_embeddings(rows.stop, mean_resizing=False)
        if in_embeddings > in_head:  # Mllama's embeddings need more rows than its head, also when reloaded
            _widen(embedding, before, in_embeddings - in_head + rows.stop)
    model.__dict__["_new_rows"] = rows
    with torch.no_grad():
        for weight, size in zip(_weights(model), sizes, strict=True):
            first = min(size, rows.start)  # Mllama's head had no row for the image token either
            weight[first : rows.stop] = _mean(weight, first)
        bias: Tensor | None = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:
            first = min(in_head, rows.start)
            bias[first : rows.stop] = bias[:first].mean()


def train_new_rows(model: PreTrainedModel) -> None:
    """Let only the new rows of their matrices train; a matrix that already trains as a whole stays so.

    The optimizer's state still is as large as the matrices. Their old rows stay bit for bit: gradients there
    are zero, and weight decay, which moves rows without gradient too, is off for these matrices.

    Args:
        model: Adapted, after `add_rows`.
    """
    rows = new_rows(model)
    for weight in _weights(model):
        if not weight.requires_grad and len(rows):
            weight.requires_grad_(True)
            weight.no_decay = True  # type: ignore[attr-defined]  # for parameter_groups
            weight.register_hook(lambda gradient: _only(gradient, rows))


def new_rows(model: nn.Module) -> range:
    """Which rows `add_rows` has made."""
    return model.__dict__.get("_new_rows", range(0))


def off_mean(model: PreTrainedModel) -> list[Tensor]:
    """How far the new rows are from the mean of those before, in standard deviations: a scalar a matrix."""
    rows = new_rows(model)
    if not len(rows):
        return []
    distances = []
    for parameter in _weights(model):
        weight = parameter.detach()
        difference = weight[rows.start : rows.stop].float() - _mean(weight, rows.start)
        distances.append(difference.abs().amax() / weight[: rows.start].float().std())
    return distances


def _weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """Of embeddings and head, once where they are tied."""
    embeddings: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings().weight
    return [embeddings] if head is embeddings else [embeddings, head]


def _mean(weight: Tensor, rows: int) -> Tensor:
    return weight[:rows].float().mean(0)


def _only(gradient: Tensor, rows: range) -> Tensor:
    masked = torch.zeros_like(gradient)
    masked[rows.start : rows.stop] = gradient[rows.start : rows.stop]
    return masked


def _widen(embedding: Any, before: Tensor, size: int) -> None:
    weight = before.new_zeros(size, before.shape[1])
    weight[: len(before)] = before
    embedding.weight = nn.Parameter(weight)
    embedding.num_embeddings = size
