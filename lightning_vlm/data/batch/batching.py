"""How the samples of a training set become batches: `data.batching` and its limits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from lightning_vlm.data.batch.batch_words import alike_in_words, filled_in_words
from lightning_vlm.data.batch.batching_checks import BY_TOKENS, MaxTokens, Mode, check_fits, check_options
from lightning_vlm.data.batch.lengths import Lengths, measure
from lightning_vlm.data.batch.packing import WINDOW, Budget, Units, alike, packed, padded, samples_in
from lightning_vlm.data.batch.sampler import ResumableBatchSampler, UnitSampler
from lightning_vlm.data.batch.task_sampler import TaskBatchSampler
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.batch.task_units import DrawnUnits, TaskUnitSampler
from lightning_vlm.data.batch.window_sampler import WindowSampler
from lightning_vlm.data.batch.windows import Windows
from lightning_vlm.data.conversation import Conversations, TaskTable
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError
from lightning_vlm.models.packing import why_not_packed


class Batching:
    """How the samples of a training set become batches.

    - `padded`: the next `batch_size` samples, padded to the longest.
    - `length`: `batch_size` samples of similar length, others in each epoch.
    - `tokens`: as many samples of similar length as `max_tokens` hold with their padding.
    - `packed`: rows of up to `max_tokens` without padding.

    With `tokens` and `packed` batches are made once, from `seed` and lengths, and come in another order in
    each epoch. So all epochs have equally many, and the length of a run is known.

    Args:
        mode: One of these words.
        max_tokens: The most tokens of a batch with `tokens` and `packed`. `auto` waits for `set_max_tokens`.
        max_patches: The most patches of its pictures; None is any number.

    Raises:
        UserError: An unknown mode, a limit that it needs and doesn't have, or has no use for.

    >>> Batching("packed", None, None)
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: data.batching packed needs data.max_tokens: the most tokens of a row, ...
    """

    def __init__(self, mode: Mode, max_tokens: MaxTokens = None, max_patches: int | None = None) -> None:
        self.mode = mode
        self.max_tokens = max_tokens
        self.max_patches = max_patches
        check_options(mode, max_tokens, max_patches)
        self._lengths: tuple[Renderer, Lengths] | None = None
        self._units: tuple[tuple, Units] | None = None
        self._said = ""

    @property
    def needs_lengths(self) -> bool:
        """Whether batches depend on how long samples are."""
        return self.mode != "padded"

    @property
    def packs(self) -> bool:
        """Whether the samples of a batch share one row."""
        return self.mode == "packed"

    @property
    def by_tokens(self) -> bool:
        """Whether batches have so many tokens, and `batch_size` is for evaluation only."""
        return self.mode in BY_TOKENS

    @property
    def lengths(self) -> Lengths:
        """Of all training samples, in the order of the source. There are some from `measure` on."""
        assert self._lengths is not None, "measure comes first"
        return self._lengths[1]

    @property
    def budget(self) -> Budget:
        """The most that a batch may hold.

        Raises:
            UserError: `max_tokens` is `auto`, and nothing has set a number.
        """
        if not isinstance(self.max_tokens, int):
            raise UserError(
                f"data.max_tokens: found {self.max_tokens}, which nothing measures here; give a number, such "
                "as batch_size times the length of a long sample"
            )
        return Budget(self.max_tokens, self.max_patches)

    def check_model(self, model: PreTrainedModel | None) -> None:
        """Go on with `tokens` where packed samples would see one another in a model, and say so in one line.
        A model that isn't loaded yet is None: ask again before batches are made."""
        why = why_not_packed(model) if self.packs and model is not None else None
        if why is not None:
            rank_zero_info(
                f"data.batching: packed can't be exact for {why}; samples are batched by tokens instead"
            )
            self.mode = "tokens"

    def measure(
        self,
        source: Conversations,
        renderer: Renderer,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        model: PreTrainedModel | None = None,
    ) -> None:
        """Find the lengths of all samples, once for each renderer. For modes that need them.

        Every rank must call it. The arguments are those of `lengths.measure`.

        Raises:
            UserError: A sample alone is more than a batch may hold.
        """
        if self._lengths is None or self._lengths[0] is not renderer:
            self._lengths = renderer, measure(source, renderer, workers, rank, world, model)
        if self.by_tokens and self.max_tokens != "auto":
            check_fits(self.lengths, self.budget, source)

    def units(self, shuffle: bool, seed: int) -> Units:
        """The batches of `tokens` and `packed`: the same samples together in each epoch.

        Args:
            shuffle: Whether samples that lie far apart in the data may meet.
            seed: Which of them do.
        """
        key = (self.mode, self.budget, shuffle, seed, self.lengths.checksum)
        if self._units is None or self._units[0] != key:
            make = packed if self.packs else padded
            order = _order(len(self.lengths), shuffle, seed, epoch=-1)
            self._units = key, make(self.lengths, order, self.budget)
        return self._units[1]

    def batches(self, size: int, batch_size: int, shuffle: bool, seed: int) -> int:
        """How many batches an epoch has, those of all ranks together.

        Args:
            size: Number of samples.
            batch_size: Samples in a batch.
            shuffle: As of `units`.
            seed: As of `units`.
        """
        return len(self.units(shuffle, seed)) if self.by_tokens else -(-size // batch_size)

    def sampler(
        self,
        size: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
        by_task: tuple[TaskTable, TaskSampling] | None = None,
        ahead: int = 1,
        times: int = 0,
        windows: Windows | None = None,
    ) -> ResumableBatchSampler:
        """Deals the batches of this mode.

        Args:
            size: Number of samples.
            batch_size: Samples in a batch of one rank, with `padded` and `length`.
            shuffle: Draw a new order each epoch.
            seed: Which orders are drawn.
            rank: This process.
            world: Number of processes.
            by_task: The tasks of samples and how they are drawn; None takes each sample once.
            ahead: How many batches may be prepared before the losses of one are known.
            times: Into how many stretches of an epoch the data changes. Where batches are made by length, it
                stays as it is at the beginning, as its lengths were measured then.
            windows: Which samples lie together, where they are streamed.
        """
        if self.mode == "padded" and by_task is not None:
            by_losses = TaskBatchSampler(*by_task, batch_size, shuffle, seed, rank, world, windows)
            by_losses.check_ahead(ahead)
            by_losses.times = times
            return by_losses
        if windows is not None:
            return WindowSampler(windows, batch_size, shuffle, seed, rank, world)
        if self.mode == "padded":
            padded = ResumableBatchSampler(size, batch_size, shuffle, seed, rank, world)
            padded.times = times
            return padded
        made_by: dict[str, Any] = {
            "batching": self.mode,
            "the checksum of all lengths": self.lengths.checksum,
            "window": WINDOW,
        }
        if self.by_tokens:
            made_by |= {f"max_{name}": limit for name, limit in self.budget._asdict().items()}
        else:
            made_by["batch_size"] = batch_size
        batches = self.batches(size, batch_size, shuffle, seed)
        if by_task is not None:
            table, sampling = by_task
            make, window = self._of_a_window(batch_size)
            drawn = DrawnUnits(table, sampling, make, window, batches, shuffle, seed)
            self._say(drawn.of_epoch(0)[0], batch_size, shuffle, seed)
            return TaskUnitSampler(drawn, sampling, made_by, size, shuffle, seed, rank, world)
        units_of = (self._units_in_order if self.by_tokens else self._alike)(batch_size, shuffle, seed)
        self._say(units_of(0), batch_size, shuffle, seed)
        return UnitSampler(units_of, batches, made_by, size, shuffle, seed, rank, world)

    def _of_a_window(self, batch_size: int) -> tuple[Callable[[np.ndarray], Units], int]:
        """What makes batches of one window of drawn samples, and how many it should have.

        Nothing of a window waits for the next, as short samples would wait longest and so come less often.
        Windows of 64 batches lose little by it. None is larger than the data, so that epochs see most of it.
        """
        lengths = self.lengths
        size = len(lengths)
        if not self.by_tokens:
            window = batch_size * min(max(16, WINDOW // batch_size), -(-size // batch_size))
            return lambda samples: alike(lengths, samples, batch_size, window), window
        fill, budget = (packed if self.packs else padded), self.budget
        window = min(max(4 * WINDOW, 64 * samples_in(budget, lengths)), size)
        return lambda samples: fill(lengths, samples, budget, len(samples)), window

    def _units_in_order(self, batch_size: int, shuffle: bool, seed: int) -> Callable[[int], Units]:
        units = self.units(shuffle, seed)

        def of_epoch(epoch: int) -> Units:
            return units.in_order(_order(len(units), shuffle, seed, epoch))

        return of_epoch

    def _alike(self, batch_size: int, shuffle: bool, seed: int) -> Callable[[int], Units]:
        lengths = self.lengths

        def of_epoch(epoch: int) -> Units:
            units = alike(lengths, _order(len(lengths), shuffle, seed, epoch), batch_size)
            return units.in_order(_order(len(units), shuffle, seed + 1, epoch))

        return of_epoch

    def _say(self, units: Units, batch_size: int, shuffle: bool, seed: int) -> None:
        """Say in one line what batches there are, if that is new."""
        if self.by_tokens:
            said = filled_in_words(self.lengths, units, self.budget, self.packs)
        else:
            order = _order(len(units.members), shuffle, seed, epoch=0)
            before = Units.of_size(np.sort(units.members)[order], batch_size)
            said = alike_in_words(self.lengths, units, before, batch_size)
        if said != self._said:
            rank_zero_info(f"Batches: {said}")
        self._said = said


def _order(number: int, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch; shape [number], int64."""
    if not shuffle:
        return np.arange(number)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1_000)
    return torch.randperm(number, generator=generator).numpy()
