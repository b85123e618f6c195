"""Which samples share a batch: the same for every way of splitting the work, and resumable."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler

from lightning_vlm.errors import UserError

PAD_INDEX = -1
"""Stands for no sample, where the last batch can't be filled."""


class ResumableBatchSampler(DistributedSampler):
    """Draws batches of indices for one rank.

    The order depends only on the seed and the epoch. Step `s` of all ranks together takes the next
    `world × batch_size` indices of it, so 2 ranks × 4 see what 1 rank × 8 sees. The last step is padded with
    `PAD_INDEX` instead of repeating samples, so every sample comes exactly once an epoch on exactly one rank,
    and all ranks have equally many batches. This is a `DistributedSampler` so that Lightning leaves it in
    place: it would replace any other sampler by one that shuffles and repeats.

    Args:
        size: Number of samples.
        batch_size: Samples in a batch of one rank.
        shuffle: Draw a new order each epoch.
        seed: Chooses the orders.
        rank: This process.
        world: Number of processes.

    >>> list(ResumableBatchSampler(5, batch_size=2, shuffle=False, seed=0, rank=1, world=2))
    [[2, 3], [-1, -1]]
    """

    description = "each sample once"
    """How samples are chosen, in words; a resumed run compares it with the checkpoint's."""

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int, rank: int, world: int) -> None:
        super().__init__(range(size), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size, self.batch_size = size, batch_size
        self.skip = 0
        """How many batches a pass leaves out at its beginning: those that a resumed run has seen."""

    @property
    def global_batch_size(self) -> int:
        """Samples in the batches of all ranks together."""
        return self.batch_size * self.num_replicas

    def __len__(self) -> int:
        return -(-self.size // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        for step in range(self.skip, len(self)):
            first = (step * self.num_replicas + self.rank) * self.batch_size
            batch = order[first : first + self.batch_size]
            yield batch + [PAD_INDEX] * (self.batch_size - len(batch))

    def begin(self, passed: int) -> None:
        """Called before a pass: how many samples, on all ranks, the pass before handed out."""

    def state_dict(self) -> dict[str, Any]:
        """What else than seed and epoch the order depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""


def begin_next_epoch(trainer: Trainer) -> None:
    """Let a trainer that resumes from the end of an epoch begin the next one.

    With `max_epochs` alone Lightning does so. With `max_steps` it takes the finished epoch for an
    unfinished one, draws one more batch for it and loses the rest of the epoch after. To be called when the
    trainer asks for its training loader.
    """
    loop = trainer.fit_loop
    now: Any = loop.epoch_progress.current
    if loop.restarting and now.ready == now.processed:
        loop.on_iteration_done()  # ends the special handling of a resumed epoch
        loop.epoch_loop.restarting = False
        if now.completed < now.processed:  # saved as it ended
            loop.epoch_progress.increment_completed()


def load_saved_state(trainer: Trainer, loader: "ResumableLoader") -> None:
    """Give a new training loader its state from the checkpoint that a trainer resumes from, if there is one.

    Lightning does so itself only inside an epoch. What is drawn by task also depends on the epochs before.
    """
    states = trainer.fit_loop._combined_loader_states_to_load
    if len(states) == 1:
        loader.load_state_dict(states[0])


class ResumableLoader(DataLoader):
    """A DataLoader that resumes in the middle of an epoch, at the first batch that was not yet trained on.

    It is made as `ResumableLoader(dataset, sampler=ResumableBatchSampler(...), batch_size=None)`, where the
    dataset takes a list of indices and returns a whole batch. It has no `__init__` of its own, because
    Lightning re-creates loaders for prediction from the arguments of theirs.
    """

    _epoch, _seen = 0, 0
    passed = 0
    """Samples of all ranks that the last pass handed out."""
    _resume: dict[str, Any] | None = None
    _finished: int | None = None

    def count_steps(self) -> None:
        """From now on only batches whose optimizer step has been made count as seen; `finish` says which."""
        self._finished = self._seen

    def finish(self, batches: int) -> None:
        """Called after an optimizer step: so many batches of this pass have had theirs."""
        self._finished = batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # This runs at the first batch, because Lightning sets the epoch only after asking for an iterator.
        batches = self._batches
        batches.skip = 0
        if self._resume and self._resume["epoch"] == batches.epoch:
            batches.skip = self._resume["seen"]
        batches.begin(self.passed)
        self._epoch, self._seen, self._resume = batches.epoch, batches.skip, None
        self.passed = batches.global_batch_size * self._seen
        if self._finished is not None:
            self._finished = self._seen
        for batch in super().__iter__():
            self._seen += 1
            self.passed += batches.global_batch_size
            yield batch

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def _batches(self) -> ResumableBatchSampler:
        assert isinstance(self.sampler, ResumableBatchSampler)
        return self.sampler

    def state_dict(self) -> dict[str, Any]:
        """Which epoch this is, how many of its batches have been seen, and what makes them these.

        Seen are those that were handed out, or after `count_steps` those whose optimizer step has been made:
        what was handed out since then comes again, because its gradients are in no checkpoint.
        """
        seen = self._seen if self._finished is None else self._finished
        state = {"epoch": self._epoch, "seen": seen, **self._order()}
        more = self._batches.state_dict()
        return {**state, "order": more} if more else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the pass of the epoch that was interrupted behind the batches already seen. Other epochs are
        whole.

        Raises:
            UserError: The batches that were not yet seen would be others now.
        """
        now = self._order()
        was = {"sampling": ResumableBatchSampler.description, **state}
        changed = [f"{name} was {was[name]}, is {now[name]}" for name in now if was[name] != now[name]]
        if changed and state["seen"] < -(-state["samples"] // state["samples a step"]):
            raise UserError(
                f"can't resume in the middle of an epoch with other batches: {'; '.join(changed)}; give "
                "back what was, or begin from a checkpoint of an epoch's end"
            )
        self._resume = dict(state)
        self._epoch, self._seen = state["epoch"], state["seen"]
        if self._finished is not None:
            self._finished = self._seen
        self.passed = state["seen"] * state["samples a step"]
        if was["sampling"] == now["sampling"] and "order" in state:
            self._batches.load_state_dict(state["order"])

    def _order(self) -> dict[str, Any]:
        batches = self._batches
        return {
            "sampling": batches.description,
            "samples": batches.size,
            "samples a step": batches.global_batch_size,
            "seed": batches.seed,
            "shuffle": int(batches.shuffle),
        }
