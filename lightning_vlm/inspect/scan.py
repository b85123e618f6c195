"""Renders training data just as `fit` does, without the model."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from random import Random

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.render.example import Example, TooLong
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.inspect.boxes import pictures
from lightning_vlm.inspect.gain import describe_all, token_gains
from lightning_vlm.inspect.preview import Preview, Sample, SampleStats, Skipped
from lightning_vlm.inspect.summary import describe_changes
from lightning_vlm.inspect.tokens import pieces
from lightning_vlm.inspect.videos import strips
from lightning_vlm.kinds import Kind
from lightning_vlm.module import VLMModule


def scan_data(
    module: VLMModule,
    data: VLMDataModule,
    samples: int = 8,
    scan: int = 1000,
    schedule: TokenWeightSchedule | None = None,
    progress: float = 0.0,
    gain: bool = False,
) -> Preview:
    """Render training data just as `fit` does, and keep what a preview shows. Loads the processor, no model.

    Args:
        module: The run's module, for its processor and its token weights.
        data: The run's data. Bad samples stop the scan or are counted, as its `on_bad_sample` says.
        samples: How many samples to show, of every sort if there is room: task, with or without pictures and
            videos, truncated or not.
        scan: How many samples to read for the figures: one from each of so many equal stretches of the data,
            so that data in a repeating order is represented too.
        schedule: Changes the weights in the course of the run; None if nothing does.
        progress: The progress of training, from 0 to 1, whose weights are shown.
        gain: Find out which words of the samples need the picture. The module's model must be loaded then.

    Raises:
        UserError: As in `fit`; or `samples`, `scan` or `progress` is out of range.
    """
    if samples < 0 or scan < 1:
        raise UserError(f"found samples {samples} and scan {scan}; expected at least 0 and 1")
    if not 0 <= progress <= 1:
        raise UserError(f"progress: found {progress}; expected a fraction of training from 0 to 1")
    token_weights = module.token_weights
    if schedule is not None:
        module.token_weights = schedule.at(progress, token_weights)
    try:
        preview = _scan(module, data, samples, scan, gain)
    finally:
        module.token_weights = token_weights
    if schedule is not None:
        preview.notes.insert(0, f"weights are those at {progress:.0%} of training; {schedule.words()}")
    elif progress:
        preview.notes.insert(0, "no TokenWeightSchedule: the weights are the same throughout training")
    return preview


def _scan(module: VLMModule, data: VLMDataModule, samples: int, scan: int, gain: bool) -> Preview:
    with warnings.catch_warnings(record=True) as caught:
        if data.processor is None:  # in a fit, the Trainer sets the processor of the module
            data.processor = module.processor
        renderer = data.renderer
        untruncated = Renderer(data.processor, video=data.video, boxes=data.boxes)
        untruncated.open_picture = renderer.open_picture
    source = data.samples("train")
    preview = Preview(
        name=module.name_or_path,
        size=len(source),
        read=min(scan, len(source)),
        token_weights=module.token_weights,
        max_length=data.max_length,
        skipped_at_opening=list(data.report.skipped.values()),
        notes=list(dict.fromkeys(str(warning.message) for warning in caught)),
    )
    boxes = left_out = 0
    for index in _with_progress_bar(_spread(preview, Random(data.seed))):
        try:
            conversation = source[index]
            example = renderer.example(conversation)
        except DataError as error:
            _check_skippable(data, error)
            length = _full_length(untruncated, conversation) if isinstance(error, TooLong) else None
            preview.skipped.append(Skipped(error, length))
            continue
        length = _full_length(untruncated, conversation) if example.truncated else len(example.input_ids)
        weights = learned_weights(module, example)
        if example.coordinates is not None:
            left_out += example.coordinates.left_out
            boxes += example.coordinates.left_out + len(example.coordinates.target_bits)
        preview.stats.append(_stats(index, conversation, example, length, weights))
    preview.notes += describe_changes(preview)
    if boxes:
        preview.notes.append(_describe_boxes(renderer, boxes, left_out))
    without_weight = sum(not stats.learned.any() for stats in preview.stats)
    if without_weight:
        preview.notes.append(
            f"{without_weight:,} of the samples that were read teach nothing: no token has weight"
        )
    for stats in choose(preview.stats, samples):
        example = renderer.example(source[stats.index])
        preview.samples.append(_sample(module, renderer, example, stats, gain))
    if gain:
        preview.notes.insert(0, describe_all(preview.samples))
    return preview


def _describe_boxes(renderer: Renderer, boxes: int, left_out: int) -> str:
    """How boxes are written, and how many of them no box loss can be computed for."""
    said = f"{boxes:,} boxes and points in answers are written as data.boxes: {renderer.boxes.codec.name}"
    if left_out:
        name = type(renderer.tokenizer).__name__
        said += (
            f"; in {left_out:,} of them {name} joins digits with other characters to one token, so that "
            "model.box_loss can't see these numbers"
        )
    return said


def _spread(preview: Preview, rng: Random) -> list[int]:
    """One random index from each of `read` equal stretches of the data."""
    size, read = preview.size, preview.read
    bounds = [number * size // read for number in range(read + 1)]
    return [rng.randrange(start, stop) for start, stop in pairwise(bounds)]


def _with_progress_bar(indices: Sequence[int]) -> Iterable[int]:
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(indices, "Reading samples", console=console, transient=True, disable=hidden)


def _check_skippable(data: VLMDataModule, error: DataError) -> None:
    """Raise the error just as training does, unless `on_bad_sample` allows to skip the sample."""
    data.on_before_batch_transfer(collate([], 0, [error], []), 0)


def learned_weights(module: VLMModule, example: Example) -> Tensor:
    """The weight that each token of a sample has in the loss: Tensor of shape [length], float32."""
    batch = collate([Item(example, None, None)], 0, [], [])
    targets = module.targets(batch)  # the same targets as in training
    weights = torch.zeros(len(example.input_ids))
    weights[targets.positions + 1] = targets.weights
    return weights


def choose(stats: Sequence[SampleStats], count: int) -> list[SampleStats]:
    """Choose up to `count` samples of all sorts, as evenly as possible; samples of one sort are adjacent."""
    sorts: dict[tuple, list[SampleStats]] = defaultdict(list)
    for sample in stats:
        has_weight = bool(sample.learned.any())
        media = sample.pictures > 0, sample.videos > 0
        sort = sample.task, media, sample.truncated > 0, has_weight, sample.changes
        sorts[sort].append(sample)
    groups = sorted(sorts.values(), key=len, reverse=True)
    # The groups take turns until there are `count` samples or no more.
    turns: list[int] = []
    for turn in range(count):
        turns += [place for place, group in enumerate(groups) if turn < len(group)]
    chosen = []
    for place, number in sorted(Counter(turns[:count]).items()):
        group = groups[place]
        chosen += [group[step * len(group) // number] for step in range(number)]
    return chosen


def _sample(
    module: VLMModule, renderer: Renderer, example: Example, stats: SampleStats, gain: bool
) -> Sample:
    weights = learned_weights(module, example)
    videos = [(clip.start, clip.stop) for clip in example.clips]
    gains = token_gains(module, example) if gain else None
    shown = pieces(renderer.tokenizer, example.input_ids, example.kinds, weights, videos, gains)
    return Sample(
        example.conversation,
        shown,
        pictures(example.conversation, renderer),
        strips(renderer, example),
        stats,
    )


def _stats(
    index: int, conversation: Conversation, example: Example, length: int, weights: Tensor
) -> SampleStats:
    kinds, count = example.kinds.long(), len(Kind)
    return SampleStats(
        index=index,
        task=conversation.task,
        length=length,
        pictures=len(conversation.images),
        videos=len(conversation.videos),
        truncated=example.truncated,
        tokens=torch.bincount(kinds, minlength=count),
        learned=torch.bincount(kinds[weights > 0], minlength=count),
        weight=torch.bincount(kinds, weights.double(), minlength=count),
        changes=example.changes,
    )


def _full_length(untruncated: Renderer, conversation: Conversation) -> int:
    """The length of a sample before truncation; a lower bound if it is too long to be counted."""
    try:
        return len(untruncated.example(conversation).input_ids)
    except TooLong:
        return untruncated.most_tokens
