"""Training data rendered just as `fit` does, without the model."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.conversation import Box, Conversation, Image
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Example, Renderer, TooLong
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.inspect.figures import Fact, LeftOut, Picture, Preview, Sample, turn_words
from lightning_vlm.inspect.tokens import pieces
from lightning_vlm.kinds import Kind
from lightning_vlm.module import VLMModule


def look(
    module: VLMModule,
    data: VLMDataModule,
    samples: int = 8,
    scan: int = 1000,
    schedule: TokenWeightSchedule | None = None,
    progress: float = 0.0,
) -> Preview:
    """Render training data just as `fit` does, and keep what is to be shown. Loads the processor, no model.

    Args:
        module: Its processor and its token weights are those of the run.
        data: Its training data are looked at. Bad samples stop it or are counted as its `on_bad_sample` says.
        samples: How many samples to show, of every sort if there is room: task, with or without pictures, cut
            or not.
        scan: How many to read for the figures: one from each of so many equal stretches of the data, so that
            an order that repeats itself does not hide anything.
        schedule: Changes the weights in the course of the run; None: nothing does.
        progress: The progress of training at which to look, from 0 to 1.

    Raises:
        UserError: As in `fit`; or fewer than 0 samples, or nothing to read, or a progress that there isn't.
    """
    if samples < 0 or scan < 1:
        raise UserError(f"found samples {samples} and scan {scan}; expected at least 0 and 1")
    if not 0 <= progress <= 1:
        raise UserError(f"progress: found {progress}; expected a fraction of training from 0 to 1")
    own = module.token_weights
    try:
        if schedule is not None:
            module.token_weights = schedule.at(progress, own)
        found = _look(module, data, samples, scan)
    finally:
        module.token_weights = own
    if schedule is not None:
        found.notes.insert(0, f"weights are those at {progress:.0%} of training; {schedule.words()}")
    elif progress:
        found.notes.insert(0, "no TokenWeightSchedule: the weights are the same throughout training")
    return found


def _look(module: VLMModule, data: VLMDataModule, samples: int, scan: int) -> Preview:
    source = data.source("train")
    opened = list(data.skipped.values())
    with warnings.catch_warnings(record=True) as caught:
        if data.processor is None:  # the Trainer would set that of the module
            data.processor = module.processor
        renderer, whole = data.renderer, Renderer(data.processor)
    read = min(scan, len(source))
    notes = list(dict.fromkeys(str(one.message) for one in caught))
    found = Preview(
        module.name_or_path, len(source), read, module.token_weights, data.max_length, opened, notes=notes
    )
    rng, console = Random(data.seed), Console(stderr=True)
    indices = [
        rng.randrange(place * len(source) // read, (place + 1) * len(source) // read) for place in range(read)
    ]
    for index in track(
        indices, "Reading samples", console=console, transient=True, disable=not console.is_terminal
    ):
        try:
            conversation = source[index]
            example = renderer.example(conversation)
        except DataError as error:
            # This raises the same errors as in training.
            data.on_before_batch_transfer(collate([], 0, [error], []), 0)
            length = _whole_length(whole, conversation) if isinstance(error, TooLong) else None
            found.left_out.append(LeftOut(error, length))
            continue
        found.facts.append(_fact(index, conversation, example, whole, learned_weights(module, example)))
    nothing = sum(not fact.learned.any() for fact in found.facts)
    found.notes += turn_words(found)
    if nothing:
        found.notes.append(f"{nothing:,} of the samples that were read teach nothing: no token has weight")
    for fact in choose(found.facts, samples):
        example = renderer.example(source[fact.place])
        found.samples.append(
            Sample(
                example.conversation,
                pieces(
                    renderer.tokenizer, example.input_ids, example.kinds, learned_weights(module, example)
                ),
                pictures(example.conversation),
                fact,
            )
        )
    return found


def learned_weights(module: VLMModule, example: Example) -> Tensor:
    """The weight that each token of a sample has in the loss: Tensor of shape [length], float32."""
    batch = collate([Item(example, None, None)], 0, [], [])
    targets = module.targets(batch)  # the same targets as in training
    weights = torch.zeros(len(example.input_ids))
    weights[targets.positions + 1] = targets.weights
    return weights


def choose(facts: Sequence[Fact], count: int) -> list[Fact]:
    """Up to `count` samples of all sorts, as evenly as they allow; those of one sort come together."""
    sorts: dict[tuple, list[Fact]] = defaultdict(list)
    for fact in facts:
        sort = fact.task, fact.pictures > 0, fact.cut > 0, bool(fact.learned.any()), fact.changes
        sorts[sort].append(fact)
    queues = sorted(sorts.values(), key=len, reverse=True)
    turns = [place for turn in range(count) for place, queue in enumerate(queues) if turn < len(queue)]
    taken = Counter(turns[:count])
    return [
        queues[place][turn * len(queues[place]) // number]
        for place, number in sorted(taken.items())
        for turn in range(number)
    ]


def pictures(conversation: Conversation) -> list[Picture]:
    """Its pictures, each with the boxes that stand behind it and before the next one."""
    found: list[Picture] = []
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Image):
                found.append(Picture(load_image(part, conversation.source, "image"), []))
            elif isinstance(part, Box) and found:
                found[-1].boxes.append((part, message.role == "assistant"))
    return found


def _fact(place: int, conversation: Conversation, example: Example, whole: Renderer, weights: Tensor) -> Fact:
    cut = example.truncated
    length = _whole_length(whole, conversation) if cut else len(example.input_ids)
    kinds, most = example.kinds.long(), len(Kind)
    return Fact(
        place,
        conversation.task,
        length,
        len(conversation.images),
        cut,
        torch.bincount(kinds, minlength=most),
        torch.bincount(kinds[weights > 0], minlength=most),
        torch.bincount(kinds, weights.double(), minlength=most),
        example.changes,
    )


def _whole_length(whole: Renderer, conversation: Conversation) -> int:
    """The tokens of a sample before it is cut; a number below it if it is too long to be counted."""
    try:
        return len(whole.example(conversation).input_ids)
    except TooLong:
        return whole.most_tokens
