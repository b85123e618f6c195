"""What `data.max_tokens: auto` and `model.gradient_checkpointing: auto` come to, from measured steps."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from lightning_vlm_callbacks.run_length import longest_window

from lightning_vlm.data.batch.lengths import Lengths, Ruler, SampleLength, patch_of
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.models.recompute import use_gradient_checkpointing
from lightning_vlm.training.memory.meter import MARGIN, Meter
from lightning_vlm.training.memory.search import UNLIMITED, Found, Samples, Search, rounded
from lightning_vlm.training.memory.trial import Trial

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

STEPS_OF_EPOCH = 50
"""An epoch keeps so many optimizer steps at least, however much memory there is."""
ENOUGH_TOKENS = 4096
"""Batches from here on keep a GPU busy: larger ones gain less than gradient checkpointing costs."""
LOOKED_AT = 1000
"""Of so many samples the longest are looked for where batches don't depend on lengths."""


class Decision(NamedTuple):
    """What was decided.

    Args:
        recompute: Whether to use gradient checkpointing.
        size: The most tokens of a batch, where they were to be found, and patches; None is any number.
        words: Why, in one line.
    """

    recompute: bool
    size: tuple[int, int | None] | None
    words: str


class Decider:
    """Measures steps of a module on its training data, and decides. All ranks decide alike.

    Args:
        module: On its device, before the fit has begun.
        data: Its data.
        meter: Of its device.
        choices: Whether to use gradient checkpointing: what may be chosen, the better one first.
    """

    def __init__(
        self, module: "VLMModule", data: VLMDataModule, meter: Meter, choices: Sequence[bool]
    ) -> None:
        self._module = module
        self._data = data
        self._meter = meter
        self._choices = choices
        self._samples = samples_of(data, module)
        rendered = data.rendered("train", learn=True, prompts=False)
        patch = patch_of(data.renderer.processor, module.model)
        self._measure = Trial(module, lambda batch: rendered[list(batch)], patch, meter)
        trainer = module.trainer
        batches_of_epoch = STEPS_OF_EPOCH * longest_window(trainer) * trainer.world_size
        self._cap = rounded(self._samples.tokens / batches_of_epoch, self._samples.longest.tokens)

    def size(self) -> Decision:
        """The largest batch, without gradient checkpointing unless that leaves too little.

        Raises:
            UserError: The longest sample doesn't fit.
        """
        before = time.monotonic()
        enough = min(ENOUGH_TOKENS, self._cap)
        for recompute in self._choices:
            self._switch(recompute)
            given = self._data.batching.max_patches
            found = Search(self._measure, self._samples, self._meter.room, self._cap, given).run()
            size = self._least(SampleLength(0, 0) if found is None else found.size)
            is_last = recompute == self._choices[-1]
            if found is not None and size.tokens and (is_last or size.tokens >= enough):
                words = self._words(found, size, recompute)
                seconds = time.monotonic() - before
                patches = size.patches if size.patches < UNLIMITED else None
                words += f"; {found.steps} steps measured in {seconds:.1f} s"
                return Decision(recompute, (size.tokens, patches), words)
        raise self._too_large("the longest sample", self._samples.longest)

    def recompute(self) -> Decision:
        """Gradient checkpointing only where the largest batches don't fit without it.

        Raises:
            UserError: They don't fit with it either.
        """
        room = self._meter.room
        batches = largest_batches(self._data, self._samples)
        needs = []
        for recompute in self._choices:
            self._switch(recompute)
            bytes_of_step = self._most(batches)
            needs.append("more than there is" if bytes_of_step is None else gib(bytes_of_step))
            if bytes_of_step is not None and bytes_of_step <= room:
                which = " with it and ".join(reversed(needs)) if recompute else needs[0]
                without = " without it" if recompute else ""
                words = f"{str(recompute).lower()}: a step of the largest batch takes {which}{without}"
                return Decision(
                    recompute,
                    None,
                    f"model.gradient_checkpointing auto is {words}, and {gib(room)} are left for it",
                )
        raise self._too_large("the largest batch", self._measure.size)

    def _switch(self, recompute: bool) -> None:
        if len(self._choices) > 1:
            use_gradient_checkpointing(self._module.model, recompute)

    def _least(self, size: SampleLength) -> SampleLength:
        """The least that any rank has found."""
        trainer = self._module.trainer
        both = torch.tensor(size, device=self._module.device)
        least = trainer.strategy.reduce(both, reduce_op="min") if trainer.world_size > 1 else both
        return SampleLength(*least.tolist())

    def _most(self, batches: Sequence[Sequence[int]]) -> int | None:
        """The most bytes that a step on some batches takes on any rank; None if one doesn't fit."""
        most = 0
        for batch in batches:
            try:
                most = max(most, self._measure(batch).bytes)
            except torch.OutOfMemoryError:
                most = UNLIMITED
                break
        most = -self._least(SampleLength(-most, 0)).tokens
        return None if most == UNLIMITED else most

    def _words(self, found: Found, size: SampleLength, recompute: bool) -> str:
        what = f"data.max_tokens auto is {size.tokens:,}"
        if self._data.batching.max_patches is None and size.patches < UNLIMITED:
            what += f" and max_patches {size.patches:,}"
        if len(self._choices) > 1:
            what += f", model.gradient_checkpointing auto is {str(recompute).lower()}"
        room = gib(self._meter.room)
        why = f"a step of the fullest batch takes {gib(found.bytes)}, and {room} are left for it"
        if found.is_capped:
            why += f" (no more, so that an epoch keeps some {STEPS_OF_EPOCH} steps)"
        return f"{what}: {why}"

    def _too_large(self, what: str, size: SampleLength) -> UserError:
        """What doesn't fit, and what to set."""
        fixes = ["model.gradient_checkpointing: true"] if True not in self._choices else []
        if not self._data.batching.by_tokens and self._data.batch_size > 1:
            fixes.append(f"data.batch_size below {self._data.batch_size}")
        elif what == "the largest batch":
            fixes.append("data.max_tokens: auto")
        fixes += [
            "a smaller data.max_length",
            "smaller pictures (the processor's max_pixels)",
            "model.adapt: qlora",
        ]
        room, whole, held = (
            gib(amount) for amount in (self._meter.room, self._meter.whole, self._meter.held)
        )
        return UserError(
            f"{what} doesn't fit into memory: {size.tokens:,} tokens and {size.patches:,} patches\n"
            f"a step may take {room}: of {whole} {MARGIN:.0%} stay free, and {held} are always in use\n"
            f"set {', or '.join(fixes)}"
        )


def samples_of(data: VLMDataModule, module: "VLMModule") -> Samples:
    """The training samples by their lengths: all of them, or some hundreds where batches don't need lengths.

    Raises:
        UserError: None of them can be used.
    """
    batching = data.batching
    if batching.mode != "padded":
        lengths = batching.lengths
        numbers = np.arange(len(lengths))
    else:
        source = data.samples("train")
        numbers = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).round().astype(np.int64))
        found = Ruler(data.renderer, module.model).lengths(source, numbers.tolist())
        lengths = Lengths(found[:, 0], found[:, 1])
    if not lengths.tokens.any():
        raise UserError("auto: found no training sample that can be used; `lightning-vlm preview` says why")
    return Samples(lengths, numbers, is_padded=not batching.packs)


def largest_batches(data: VLMDataModule, samples: Samples) -> list[list[int]]:
    """The batches of a run with most tokens and with most patches, or those of the largest samples."""
    if not data.batching.by_tokens:
        return [order[: data.batch_size] for order in (samples.by_tokens, samples.by_patches)]
    units = data.batching.units(data.shuffle, data.seed)
    lengths = data.batching.lengths
    tokens = np.add.reduceat(lengths.tokens[units.members], units.starts)
    if not data.batching.packs:
        tokens = units.longest(lengths) * units.sizes
    patches = np.add.reduceat(lengths.patches[units.members], units.starts)
    return [units[int(number)] for number in (tokens.argmax(), patches.argmax())]


def gib(size: float) -> str:
    """Bytes for people.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.0f} MiB"
