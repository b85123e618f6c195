"""From rendered samples to one batch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.question import Question, question_of
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind

_Side: TypeAlias = Literal["left", "right"]


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
        return _empty_batch(pad_token_id, skipped, truncated)
    conversations = [example.conversation for example in shown]
    weights = [conversation.weight for conversation in conversations]
    changes = []
    for example in shown:
        for change in example.changes:
            changes.append((example.conversation.source, change))
    return Batch(
        inputs=_join(examples, pad_token_id, "right"),
        kinds=_stack([example.kinds for example in examples], Kind.PAD, "right"),
        sample_weights=torch.tensor(weights, dtype=torch.float32),
        tasks=[conversation.task for conversation in conversations],
        sources=[conversation.source for conversation in conversations],
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

    Most families have one group. Where tokens see pictures by cross-attention (Mllama), the rows of a group
    have the same number of pictures. A token before the first picture, or in a row without any, sees the mean
    of all pictures there, so it would see those that pad its row as well.

    Args:
        inputs: What the model's forward takes.
    Returns:
        The rows of each group, an int64 tensor, and their inputs, with no more pictures than the rows have.
    """
    input_ids = inputs["input_ids"]
    by_token = {name: value for name, value in inputs.items() if value.shape[:2] == input_ids.shape}
    masks = [value for value in by_token.values() if value.ndim > 2]
    if not masks:
        return [(torch.arange(len(input_ids)), inputs)]
    mask = masks[0]  # [batch, length, pictures, tiles]
    is_seen = mask.flatten(3).any(3).any(1)  # [batch, pictures]
    counts = is_seen.sum(1).cpu()
    groups = []
    for count in counts.unique().tolist():
        (rows,) = (counts == count).nonzero(as_tuple=True)
        group = {}
        for name, value in inputs.items():
            values = value[rows.to(value.device)]
            if name in by_token and value.ndim == 2:
                group[name] = values
            elif count and name in by_token:
                group[name] = values[:, :, :count]
            elif count:
                group[name] = values[:, :count]
        groups.append((rows, group))
    return groups


def _empty_batch(pad_token_id: int, skipped: list[DataError], truncated: list[str]) -> Batch:
    return Batch(
        inputs={"input_ids": torch.tensor([[pad_token_id]]), "attention_mask": torch.tensor([[1]])},
        kinds=torch.full((1, 1), Kind.PAD, dtype=torch.int8),
        sample_weights=torch.zeros(1),
        tasks=[],
        sources=[],
        prompts={},
        references=[],
        skipped=skipped,
        truncated=truncated,
        tokens=0,
    )


def _turn_weights(examples: Sequence[Example]) -> Tensor | None:
    if all(example.turn_weights is None for example in examples):
        return None
    rows = []
    for example in examples:
        weights = example.turn_weights
        if weights is None:
            weights = torch.ones(len(example.input_ids))
        rows.append(weights)
    return _stack(rows, 1, "right")


def _join(examples: Sequence[Example], pad_token_id: int, side: _Side) -> dict[str, Tensor]:
    """The inputs of samples, padded to one length. A sample without pictures lacks some of them."""
    if not examples:
        return {}
    inputs = {"input_ids": _stack([example.input_ids for example in examples], pad_token_id, side)}
    lengths = [len(example.input_ids) for example in examples]
    values_by_name = _values_by_name(examples)
    by_token = {name for name, values in values_by_name.items() if _are_by_token(values, lengths)}
    # Where tokens say which pictures of their row they see (Mllama), each row must have some.
    each_needs_pictures = any(_first(values_by_name[name]).ndim > 2 for name in by_token)
    for name, values in values_by_name.items():
        if name in by_token:
            inputs[name] = _join_by_token(values, lengths, side)
        else:
            inputs[name] = _join_pictures(values, each_needs_pictures)
    return inputs


def _values_by_name(examples: Sequence[Example]) -> dict[str, list[Tensor | None]]:
    """Each input of the processor by its name: its value in each sample, None where a sample lacks it."""
    values_by_name: dict[str, list[Tensor | None]] = {}
    for example in examples:
        for name in example.inputs:
            if name not in values_by_name:
                values_by_name[name] = [other.inputs.get(name) for other in examples]
    return values_by_name


def _are_by_token(values: Sequence[Tensor | None], lengths: Sequence[int]) -> bool:
    """Whether each value has the shape [1, length, ...] of its sample."""
    for value, length in zip(values, lengths, strict=True):
        if value is not None and value.shape[:2] != (1, length):
            return False
    return True


def _first(values: Sequence[Tensor | None]) -> Tensor:
    return next(value for value in values if value is not None)


def _join_by_token(values: Sequence[Tensor | None], lengths: Sequence[int], side: _Side) -> Tensor:
    """Join values of each token, such as `attention_mask`. A sample without them gets zeros."""
    like = _first(values)
    shape = _largest([value.shape[2:] for value in values if value is not None])
    rows = []
    for value, length in zip(values, lengths, strict=True):
        row = like.new_zeros(length, *shape) if value is None else _fill(value[0], shape)
        rows.append(row)
    return _stack(rows, 0, side)


def _join_pictures(values: Sequence[Tensor | None], each_needs_pictures: bool) -> Tensor:
    """Join values of pictures. Where dimensions after the first one differ (SmolVLM), zeros fill them up."""
    given = [value for value in values if value is not None]
    if each_needs_pictures:
        missing = given[0].new_zeros(1, *given[0].shape[1:])
        given = [missing if value is None else value for value in values]
    shape = _largest([value.shape[1:] for value in given])
    return torch.cat([_fill(value, shape) for value in given])


def _stack(rows: Sequence[Tensor], value: int, side: _Side) -> Tensor:
    """Pad tensors of shape [length, ...] to one of shape [batch, longest, ...]."""
    if not rows:
        return torch.empty(0, 0, dtype=torch.int8)
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _largest(shapes: Sequence[torch.Size]) -> list[int]:
    """The size that each dimension needs to hold all shapes."""
    return [max(sizes) for sizes in zip(*shapes, strict=True)]


def _fill(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Pad a value with zeros to a shape, in all dimensions but the first."""
    filled = value.new_zeros(len(value), *shape)
    corner = tuple(slice(size) for size in value.shape)
    filled[corner] = value
    return filled
