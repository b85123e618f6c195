"""From rendered samples to one batch."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.question import Question, question_of
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind


class Targets(NamedTuple):
    """The tokens of a batch that have weight, each at the position that predicts it.

    Args:
        positions: Tensor of shape [targets], int64: where each is predicted, in the flattened batch.
        labels: Tensor of shape [targets], int64: the tokens.
        weights: Tensor of shape [targets], float32.
    """

    positions: Tensor
    labels: Tensor
    weights: Tensor


class Batch(NamedTuple):
    """Some samples, padded to one length.

    Args:
        inputs: What the model's forward takes: `input_ids` and `attention_mask` of shape [batch, length],
            padded on the right, and what the family's processor adds (pixels, grids, token types).
        kinds: Tensor of shape [batch, length], int8, a `Kind` for each token.
        sample_weights: Tensor of shape [batch], float32.
        tasks: The task of each sample.
        sources: Where each sample came from.
        prompts: As `inputs`, but each sample only up to its last answer, padded on the left; empty if nothing
            is to be generated.
        references: The last answer of each sample; None where it has none.
        skipped: The errors of samples that should have been here.
        truncated: Sources of samples that lost rounds to fit into the maximum length.
        tokens: How many tokens there are, padding not counted.
        targets: What is learned, as the module's weights choose it.
        questions: The prompt of each sample in words, if answers are to be generated.
        turn_weights: Tensor of shape [batch, length], float32: the weight of the turn of each token of an
            answer, 1 for all others; None where all turns weigh 1.
        changes: What was done to the turns of its samples: the source and a sentence of `turns` each time.
    """

    inputs: dict[str, Tensor]
    kinds: Tensor
    sample_weights: Tensor
    tasks: list[str]
    sources: list[str]
    prompts: dict[str, Tensor]
    references: list[str | None]
    skipped: list[DataError]
    truncated: list[str]
    tokens: int
    targets: Targets | None = None
    questions: Sequence[Question] = ()
    turn_weights: Tensor | None = None
    changes: tuple[tuple[str, str], ...] = ()


class Item(NamedTuple):
    """One rendered sample before it joins a batch: to learn from, to answer, or both."""

    example: Example | None
    prompt: Example | None
    reference: str | None


def collate(
    items: Sequence[Item], pad_token_id: int, skipped: list[DataError], truncated: list[str]
) -> Batch:
    """Pad and join samples.

    Without any samples (all were skipped) the batch is one padding token, which has no weight: under DDP a
    rank must go through its step all the same.
    """
    examples = [item.example for item in items if item.example is not None]
    prompts = [item.prompt for item in items if item.prompt is not None]
    shown = examples or prompts
    if not shown:
        inputs = {"input_ids": torch.tensor([[pad_token_id]]), "attention_mask": torch.tensor([[1]])}
        kinds = torch.full((1, 1), Kind.PAD, dtype=torch.int8)
        return Batch(inputs, kinds, torch.zeros(1), [], [], {}, [], skipped, truncated, 0)
    conversations = [example.conversation for example in shown]
    changes = [(example.conversation.source, change) for example in shown for change in example.changes]
    return Batch(
        inputs=_join(examples, pad_token_id, "right"),
        kinds=_stack([example.kinds for example in examples], Kind.PAD, "right"),
        sample_weights=torch.tensor([each.weight for each in conversations], dtype=torch.float32),
        tasks=[each.task for each in conversations],
        sources=[each.source for each in conversations],
        prompts=_join(prompts, pad_token_id, "left"),
        references=[item.reference for item in items if item.prompt is not None],
        skipped=skipped,
        truncated=truncated,
        tokens=sum(len(example.input_ids) for example in examples),
        questions=[question_of(prompt.conversation) for prompt in prompts],
        turn_weights=_turn_weights(examples),
        changes=tuple(changes),
    )


def split_by_image_count(inputs: dict[str, Tensor]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Split a batch into groups of rows that don't change one another in the model.

    That is one group, but where tokens see pictures by cross-attention (Mllama): there a token before the
    first picture, or in a row without any, sees the mean of all of them, those that fill up the batch too.

    Args:
        inputs: What the model's forward takes.
    Returns:
        The rows of each group, an int64 tensor, and their inputs, with no more pictures than the rows have.
    """
    input_ids = inputs["input_ids"]
    by_token = [name for name, value in inputs.items() if value.shape[:2] == input_ids.shape]
    cross_attention = [inputs[name] for name in by_token if inputs[name].ndim > 2]
    if not cross_attention:
        return [(torch.arange(len(input_ids)), inputs)]
    mask = cross_attention[0]  # [batch, length, pictures, tiles]
    counts = mask.flatten(3).any(3).any(1).sum(1).cpu()
    groups = []
    for count in counts.unique().tolist():
        (rows,) = (counts == count).nonzero(as_tuple=True)
        of_rows = {}
        for name, value in inputs.items():
            values = value[rows.to(value.device)]
            if name in by_token and value.ndim == 2:
                of_rows[name] = values
            elif count:
                of_rows[name] = values[:, :, :count] if name in by_token else values[:, :count]
        groups.append((rows, of_rows))
    return groups


def _turn_weights(examples: Sequence[Example]) -> Tensor | None:
    given = [example.turn_weights for example in examples]
    if all(weights is None for weights in given):
        return None
    rows = []
    for example, weights in zip(examples, given, strict=True):
        rows.append(torch.ones(len(example.input_ids)) if weights is None else weights)
    return _stack(rows, 1, "right")


def _join(
    examples: Sequence[Example], pad_token_id: int, side: Literal["left", "right"]
) -> dict[str, Tensor]:
    """The inputs of samples, padded to one length. A sample without pictures lacks some of them."""
    if not examples:
        return {}
    inputs = {"input_ids": _stack([example.input_ids for example in examples], pad_token_id, side)}
    names = dict.fromkeys(name for example in examples for name in example.inputs)
    by_token = [name for name in names if all(_is_by_token(name, example) for example in examples)]
    # Where tokens say which pictures of their row they see (Mllama), each row must have some.
    each_needs_pictures = any(_given(name, examples)[0].ndim > 2 for name in by_token)
    for name in names:
        if name in by_token:
            inputs[name] = _join_by_token(name, examples, side)
        else:
            inputs[name] = _join_pictures(name, examples, each_needs_pictures)
    return inputs


def _given(name: str, examples: Sequence[Example]) -> list[Tensor]:
    return [example.inputs[name] for example in examples if name in example.inputs]


def _is_by_token(name: str, example: Example) -> bool:
    value = example.inputs.get(name)
    return value is None or value.shape[:2] == (1, len(example.input_ids))


def _join_by_token(name: str, examples: Sequence[Example], side: Literal["left", "right"]) -> Tensor:
    """Values of each token, such as `attention_mask`. A sample without them gets zeros."""
    given = _given(name, examples)
    shape = _largest(value[0, 0] for value in given)
    rows = []
    for example in examples:
        missing = given[0].new_zeros(1, len(example.input_ids), *shape)
        rows.append(_fill(example.inputs.get(name, missing)[0], shape))
    return _stack(rows, 0, side)


def _join_pictures(name: str, examples: Sequence[Example], each_needs_pictures: bool) -> Tensor:
    """Values of pictures. Where dimensions behind the first one differ (SmolVLM), zeros fill them up."""
    values = _given(name, examples)
    if each_needs_pictures:
        missing = values[0].new_zeros(1, *values[0].shape[1:])
        values = [example.inputs.get(name, missing) for example in examples]
    shape = _largest(value[0] for value in values)
    return torch.cat([_fill(value, shape) for value in values])


def _stack(rows: Sequence[Tensor], value: int, side: Literal["left", "right"]) -> Tensor:
    """Tensors of shape [length, ...] to one of shape [batch, longest, ...]."""
    if not rows:
        return torch.empty(0, 0, dtype=torch.int8)
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _largest(values: Iterable[Tensor]) -> list[int]:
    """The size of each dimension that holds all values."""
    return [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]


def _fill(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros behind a value, in all dimensions but the first."""
    filled = value.new_zeros(len(value), *shape)
    filled[tuple(slice(size) for size in value.shape)] = value
    return filled
