"""From rendered samples to one batch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

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

    Without any samples (all were left out) the batch is one padding token, which has no weight: under DDP a
    rank must go through its step all the same.
    """
    examples = [item.example for item in items if item.example is not None]
    prompts = [item.prompt for item in items if item.prompt is not None]
    shown = examples or prompts
    if not shown:
        inputs = {"input_ids": torch.tensor([[pad_token_id]]), "attention_mask": torch.tensor([[1]])}
        kinds = torch.full((1, 1), Kind.PAD, dtype=torch.int8)
        return Batch(inputs, kinds, torch.zeros(1), [], [], {}, [], skipped, truncated, 0)
    return Batch(
        inputs=_join(examples, pad_token_id, "right"),
        kinds=_stack([one.kinds for one in examples], Kind.PAD, "right"),
        sample_weights=torch.tensor([one.conversation.weight for one in shown], dtype=torch.float32),
        tasks=[one.conversation.task for one in shown],
        sources=[one.conversation.source for one in shown],
        prompts=_join(prompts, pad_token_id, "left"),
        references=[item.reference for item in items if item.prompt is not None],
        skipped=skipped,
        truncated=truncated,
        tokens=sum(len(one.input_ids) for one in examples),
        questions=[question_of(one.conversation) for one in prompts],
        turn_weights=_turn_weights(examples),
        changes=tuple((one.conversation.source, change) for one in shown for change in one.changes),
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
    sees = next((value for value in inputs.values() if value.ndim > 2 and _by_token(value, inputs)), None)
    if sees is None:
        return [(torch.arange(len(inputs["input_ids"])), inputs)]
    counts = (
        sees.flatten(3).any(3).any(1).sum(1).cpu()
    )  # [batch, length, pictures, tiles]: each row's pictures
    groups = []
    for count in counts.unique().tolist():
        (rows,) = (counts == count).nonzero(as_tuple=True)
        mine = {}
        for name, value in inputs.items():
            row_values = value[rows.to(value.device)]
            if value.ndim == 2 and _by_token(value, inputs):
                mine[name] = row_values
            elif count:
                mine[name] = row_values[:, :, :count] if _by_token(value, inputs) else row_values[:, :count]
        groups.append((rows, mine))
    return groups


def _turn_weights(examples: Sequence[Example]) -> Tensor | None:
    if all(example.turn_weights is None for example in examples):
        return None
    rows = []
    for example in examples:
        ones = torch.ones(len(example.input_ids))
        rows.append(ones if example.turn_weights is None else example.turn_weights)
    return _stack(rows, 1, "right")


def _by_token(value: Tensor, inputs: Mapping[str, Tensor]) -> bool:
    return value.shape[:2] == inputs["input_ids"].shape


def _join(
    examples: Sequence[Example], pad_token_id: int, side: Literal["left", "right"]
) -> dict[str, Tensor]:
    if not examples:
        return {}
    inputs = {"input_ids": _stack([one.input_ids for one in examples], pad_token_id, side)}
    # Where tokens say which pictures of their row they see (Mllama), each row must have some.
    rows_have_pictures = any(
        value.ndim > 2 and _has_each_token(one, value) for one in examples for value in one.inputs.values()
    )
    for name in _names(one.inputs for one in examples):
        having = [one for one in examples if name in one.inputs]
        values = [one.inputs[name] for one in having]
        if all(map(_has_each_token, having, values)):
            # attention_mask, mm_token_type_ids, ...: a sample without it gets zeros.
            shape = _largest(value[0, 0] for value in values)
            rows = [
                _fill(one.inputs[name][0], shape)
                if name in one.inputs
                else values[0].new_zeros(len(one.input_ids), *shape)
                for one in examples
            ]
            inputs[name] = _stack(rows, 0, side)
            continue
        if rows_have_pictures:
            values = [one.inputs.get(name, values[0].new_zeros(1, *values[0].shape[1:])) for one in examples]
        # Where others than the first dimension differ (SmolVLM: pictures of a sample), fill up with zeros.
        shape = _largest(value[0] for value in values)
        inputs[name] = torch.cat([_fill(value, shape) for value in values])
    return inputs


def _has_each_token(example: Example, value: Tensor) -> bool:
    return value.shape[:2] == (1, len(example.input_ids))


def _names(inputs: Iterable[Mapping[str, Tensor]]) -> list[str]:
    """All names in a stable order; a sample without pictures lacks some."""
    return list(dict.fromkeys(name for one in inputs for name in one))


def _stack(rows: Sequence[Tensor], value: int, side: Literal["left", "right"]) -> Tensor:
    """Tensors of shape [length, ...] to one of shape [batch, longest, ...]."""
    if not rows:
        return torch.empty(0, 0, dtype=torch.int8)
    longest = max(len(row) for row in rows)
    padded = []
    for row in rows:
        missing = longest - len(row)
        sides = (missing, 0) if side == "left" else (0, missing)
        padded.append(functional.pad(row, (*[0, 0] * (row.ndim - 1), *sides), value=value))
    return torch.stack(padded)


def _largest(values: Iterable[Tensor]) -> list[int]:
    """The size of each dimension that holds all values."""
    return [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]


def _fill(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros behind a value, in all dimensions but the first."""
    missing = [size - have for size, have in zip(shape, value.shape[1:], strict=True)]
    return functional.pad(value, [amount for one in reversed(missing) for amount in (0, one)])
