"""From rendered samples to one batch."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vlm.data.batch.coordinates import Coordinates, join_coordinates
from lightning_vlm.data.batch.join import join_packed, join_padded, pad
from lightning_vlm.data.batch.masks import Masks, join_masks
from lightning_vlm.data.batch.number_targets import NumberTargets
from lightning_vlm.data.batch.picture_sizes import PictureSizes, picture_sizes
from lightning_vlm.data.boxes.reader import BoxReader
from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.question import Question, question_of
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from lightning_vlm.models.picture_inputs import PictureInputs

SECONDS = "second_per_grid_ts"
"""The input that says how many seconds lie between the grids of a video (Qwen2.5-VL)."""


class Targets(NamedTuple):
    """The tokens of a batch that have weight, each at the position that predicts it.

    Args:
        positions: Tensor of shape [targets], int64: where each is predicted, in the flattened batch.
        labels: Tensor of shape [targets], int64: the tokens.
        weights: Tensor of shape [targets], float32.
        numbers: Those that are tokens of coordinates, if a box loss is to know them.
    """

    positions: Tensor
    labels: Tensor
    weights: Tensor
    numbers: NumberTargets | None = None


class Sequences(NamedTuple):
    """Where samples lie in the flattened rows of a batch; no token sees those of another sequence.

    Args:
        cu_seq_lens: Tensor of shape [sequences + 1], int32: where each begins, and the end of the last. The
            padding at the end of a row is a sequence of its own.
        max_length: Tokens of the longest one.
    """

    cu_seq_lens: Tensor
    max_length: int


class Batch(NamedTuple):
    """Some samples, padded to one length, or packed into one row.

    Args:
        inputs: What the model's forward takes: `input_ids` of shape [rows, length], and what the family's
            processor adds (pixels, grids, token types). Padded on the right there is a row for each sample,
            with an `attention_mask`; packed there is one row and no mask, and `position_ids` begin again with
            each sample.
        kinds: Tensor of shape [rows, length], int8, a `Kind` for each token.
        samples: Tensor of shape [rows, length], int32: which sample each token belongs to; padding belongs to
            that of its row.
        factor_bits: Tensor of shape [rows, length], int32: `factors`, bit by bit, because `bf16-true` and
            `16-true` of Lightning round all floating-point tensors of a batch.
        tasks: The task of each sample.
        sources: Where each sample came from.
        prompts: As `inputs`, but each sample only up to its last answer, padded on the left; empty if nothing
            is to be generated. `exact_again` gives what `generate` takes.
        references: The last answer of each sample; None where it has none.
        skipped: The errors of samples that should have been here.
        truncated: Sources of samples that lost rounds to fit into the maximum length.
        tokens: How many tokens there are, padding not counted.
        targets: What is learned, as the module's weights choose it.
        questions: The prompt of each sample in words, if answers are to be generated.
        changes: What was done to the turns of its samples: the source and a sentence of `turns` each time.
        sequences: Where the samples lie; None if nothing is to be learned.
        lengths: The tokens of each sample, padding not counted; numbers of the host, so that what splits a
            packed row into samples needs no wait for the device. Empty if nothing is to be learned.
        pictures: How many pictures there are and how large, likewise.
        picture_inputs: What the model needs of them beside the pixels, on the host; None leaves that to it.
        coordinates: Which tokens are numbers of boxes and points in answers; None where no sample has any.
        masks: The masks of answers; None where no sample has any.
        readers: What reads boxes in the answer to each prompt; None where none are to be read.
        places: Which items of their source the samples are.
        levels: What the answer of each sample is about, where the sample says so.
    """

    inputs: dict[str, Tensor]
    kinds: Tensor
    samples: Tensor
    factor_bits: Tensor
    tasks: list[str]
    sources: list[str]
    prompts: dict[str, Tensor]
    references: list[str | None]
    skipped: list[DataError]
    truncated: list[str]
    tokens: int
    targets: Targets | None = None
    questions: Sequence[Question] = ()
    changes: tuple[tuple[str, str], ...] = ()
    sequences: Sequences | None = None
    lengths: tuple[int, ...] = ()
    pictures: PictureSizes = PictureSizes()
    picture_inputs: PictureInputs | None = None
    coordinates: Coordinates | None = None
    masks: Masks | None = None
    readers: Sequence[BoxReader | None] = ()
    places: tuple[int, ...] = ()
    levels: Sequence[str | None] = ()

    @property
    def factors(self) -> Tensor:
        """Shape [rows, length], float32: the weight of each token's sample times that of its turn."""
        return self.factor_bits.view(torch.float32)

    @property
    def is_packed(self) -> bool:
        """Whether samples share a row."""
        return len(self.samples) < len(self.lengths)

    @property
    def packed_lengths(self) -> tuple[int, ...] | None:
        """The tokens of each sample where samples share a row; callbacks of any project ask for it."""
        return self.lengths if self.is_packed else None


class Item(NamedTuple):
    """One rendered sample before it joins a batch: to learn from, to answer, or both.

    Args:
        example: What is learned.
        prompt: What is answered.
        reference: The answer that the data has.
        positions: Tensor of shape [axes, length], int64: the positions of the example's tokens, if its model
            has several axes of them; None if they are 0, 1, 2, ...
    """

    example: Example | None
    prompt: Example | None
    reference: str | None
    positions: Tensor | None = None


def collate(
    items: Sequence[Item],
    pad_token_id: int,
    skipped: list[DataError],
    truncated: list[str],
    pack: bool = False,
) -> Batch:
    """Join samples: pad them to one length, or pack those that are learned into one row.

    Without any samples (all were skipped) the batch is one padding token, which has no weight: under DDP a
    rank must go through its step all the same.

    Raises:
        UserError: What can't be packed.
    """
    examples = [item.example for item in items if item.example is not None]
    prompts = [item.prompt for item in items if item.prompt is not None]
    pack = pack and bool(examples)
    shown = examples or prompts
    if not shown:
        return _empty_batch(pad_token_id, skipped, truncated)
    conversations = [example.conversation for example in shown]
    done = [(one.conversation.source, change) for one in (*examples, *prompts) for change in one.changes]
    changes = dict.fromkeys(done)  # a sample and its prompt may share one
    lengths = [len(example.input_ids) for example in examples]
    inputs = join_packed(examples) if pack else join_padded(examples, pad_token_id, "right")
    if examples:
        inputs |= _positions([item.positions for item in items if item.example is not None], lengths, pack)
    return Batch(
        inputs=inputs,
        kinds=_join_tokens([example.kinds for example in examples], Kind.PAD, pack),
        samples=_samples(lengths, pack),
        factor_bits=_join_tokens([_factor_bits(example) for example in examples], 0, pack),
        tasks=[conversation.task for conversation in conversations],
        sources=[conversation.source for conversation in conversations],
        prompts=kept_exact(join_padded(prompts, pad_token_id, "left")),
        references=[item.reference for item in items if item.prompt is not None],
        skipped=skipped,
        truncated=truncated,
        tokens=sum(lengths),
        questions=[question_of(prompt.conversation) for prompt in prompts],
        changes=tuple(changes),
        sequences=_sequences(lengths, pack) if lengths else None,
        lengths=tuple(lengths),
        pictures=picture_sizes(inputs),
        coordinates=join_coordinates([example.coordinates for example in examples], _starts(lengths, pack)),
        masks=join_masks([example.masks for example in examples], _starts(lengths, pack)),
        readers=tuple(prompt.reader for prompt in prompts),
        levels=[conversation.level for conversation in conversations],
    )


def kept_exact(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with the seconds of videos bit by bit, for the reason of `Batch.factor_bits`: positions are made
    of them, and some would be others in bfloat16."""
    seconds = inputs.get(SECONDS)
    if seconds is None:
        return inputs
    return {**inputs, SECONDS: seconds.float().view(torch.int32)}


def exact_again(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `kept_exact` was given."""
    seconds = inputs.get(SECONDS)
    if seconds is None or seconds.is_floating_point():
        return dict(inputs)
    return {**inputs, SECONDS: seconds.view(torch.float32)}


def _empty_batch(pad_token_id: int, skipped: list[DataError], truncated: list[str]) -> Batch:
    return Batch(
        inputs={"input_ids": torch.tensor([[pad_token_id]]), "attention_mask": torch.tensor([[1]])},
        kinds=torch.full((1, 1), Kind.PAD, dtype=torch.int8),
        samples=torch.zeros(1, 1, dtype=torch.int32),
        factor_bits=torch.zeros(1, 1, dtype=torch.int32),
        tasks=[],
        sources=[],
        prompts={},
        references=[],
        skipped=skipped,
        truncated=truncated,
        tokens=0,
        sequences=Sequences(torch.tensor([0, 1], dtype=torch.int32), 1),
    )


def _join_tokens(rows: Sequence[Tensor], value: int, pack: bool) -> Tensor:
    """Join one value for each token of each sample."""
    return torch.cat(list(rows))[None] if pack else pad(rows, value, "right")


def _samples(lengths: Sequence[int], pack: bool) -> Tensor:
    samples = torch.arange(len(lengths), dtype=torch.int32)
    if pack:
        return samples.repeat_interleave(torch.tensor(lengths))[None]
    return samples[:, None].repeat(1, max(lengths, default=0))


def _starts(lengths: Sequence[int], pack: bool) -> list[int]:
    """Where each sample begins in the flattened rows."""
    if pack:
        return list(itertools.accumulate(lengths, initial=0))[:-1]
    longest = max(lengths, default=0)
    return [row * longest for row in range(len(lengths))]


def _sequences(lengths: Sequence[int], pack: bool) -> Sequences:
    """Samples one after the other, each followed by the padding of its row."""
    longest = max(lengths)
    sequences = []
    for length in lengths:
        sequences.append(length)
        if not pack and length < longest:
            sequences.append(longest - length)
    ends = itertools.accumulate(sequences, initial=0)
    return Sequences(torch.tensor(list(ends), dtype=torch.int32), max(sequences))


def _positions(positions: Sequence[Tensor | None], lengths: Sequence[int], pack: bool) -> dict[str, Tensor]:
    """The `position_ids` of a batch. A padded one needs them only for models with several axes.

    Packed, such models take one more axis in front of theirs, by which they would make a mask.
    """
    axes = [sample for sample in positions if sample is not None]
    if not pack:
        if not axes:
            return {}
        rows = pad([sample.T for sample in axes], 0, "right")  # [batch, length, axes]
        return {"position_ids": rows.permute(2, 0, 1)}
    in_order = torch.cat([torch.arange(length) for length in lengths])[None]
    if not axes:
        return {"position_ids": in_order}
    return {"position_ids": torch.cat([in_order, torch.cat(axes, dim=1)])[:, None]}


def _factor_bits(example: Example) -> Tensor:
    """The weight of a sample times that of each token's turn; shape [length], see `Batch.factor_bits`."""
    weights = example.turn_weights
    if weights is None:
        weights = torch.ones(len(example.input_ids))
    return (weights * example.conversation.weight).view(torch.int32)
